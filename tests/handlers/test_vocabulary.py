"""A tokenizer that is not its network's is found at load, or when a text holds what the network has no vector for."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from container.errors import BadArchive, BadInput
from handlers.embeddings import Embeddings
from handlers.summarization import Summarization
from handlers.text_generation import TextGeneration
from tests.handlers.models import MINILM, ask, bert, gpt2, loaded
from tests.handlers.seq2seq import bart


def with_added_tokens(path):
    """``path`` after ``tokenizer.add_tokens`` whose author forgot ``resize_token_embeddings``."""
    words = transformers.AutoTokenizer.from_pretrained(str(path))
    words.add_tokens([f"[LOOSE{number}]" for number in range(100)])
    words.save_pretrained(path)
    return path


def distil(path):
    small = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}
    transformers.DistilBertModel(transformers.DistilBertConfig(**small)).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((MINILM / name).read_bytes())
    return path


def minilm_like(path):
    return bert(path, tokenizer=("tokenizer.json", "tokenizer_config.json"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "make"),
    [
        (Embeddings, minilm_like),
        (Embeddings, distil),
        (TextGeneration, gpt2),
        (TextGeneration, lambda path: gpt2(path, activation_function="tanh")),
        (Summarization, bart),
    ],
)
def test_a_token_that_was_added_to_the_tokenizer_only_is_the_callers_to_leave_out(tmp_path, kind, make):
    handler = loaded(kind(), with_added_tokens(make(tmp_path)))
    assert ask(handler, "the ship lies")
    with pytest.raises(BadInput, match=r"added to the tokenizer \(number \d+\) and not to the network, which has \d+"):
        ask(handler, "the ship [LOOSE99] lies")


@pytest.mark.parametrize(("kind", "make"), [(Embeddings, minilm_like), (TextGeneration, gpt2)])
def test_a_tokenizer_with_more_words_than_the_network_is_refused_at_load(tmp_path, kind, make):
    path = make(tmp_path)
    weights = load_file(str(path / "model.safetensors"))
    name = next(name for name in weights if "word_embeddings.weight" in name or "wte.weight" in name)
    weights[name] = weights[name][:100].clone()
    save_file(weights, str(path / "model.safetensors"), {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(BadArchive, match=r"the tokenizer has \d+ words, the network 100: they are of different models"):
        loaded(kind(), path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "make"),
    [
        (Embeddings, distil),
        (TextGeneration, lambda path: gpt2(path, activation_function="tanh")),
        (Summarization, bart),
    ],
)
def test_a_folder_without_a_tokenizer_is_refused_though_transformers_makes_an_empty_one(tmp_path, kind, make):
    torch.manual_seed(0)
    path = make(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (path / name).unlink(missing_ok=True)
    with pytest.raises(BadArchive, match=r"no tokenizer: tokenizer\.json"):
        loaded(kind(), path)
