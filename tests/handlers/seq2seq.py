"""A small BART as a folder, made with transformers and seeded."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer

from tests.handlers.models import TEXT


def bart(path: Path, **changes: object) -> Path:
    """A BartForConditionalGeneration of 64 positions that writes something else for each text."""
    path.mkdir(parents=True, exist_ok=True)
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator([TEXT] * 3, vocab_size=330, min_frequency=1, special_tokens=special)
    trained.save_model(str(path))
    small = {"vocab_size": 330, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
    small |= {f"{side}_{part}": size for side in ("encoder", "decoder") for part, size in SIZES.items()}
    torch.manual_seed(8)
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**{**small, **changes}))
    for name, parameter in model.named_parameters():
        listens = "encoder_attn" in name and "layer_norm" not in name  # else it would talk to itself
        parameter.data.mul_(40 if listens else 4)
    model.save_pretrained(path)
    return path


SIZES = {"attention_heads": 4, "ffn_dim": 64}
