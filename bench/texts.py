"""Sentences of a known number of tokens."""

from __future__ import annotations

import json
import random

from bench import archives

#: [CLS] and [SEP] count.
TOKENS = 16


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return ``count`` different sentences of TOKENS tokens for BERT's vocabulary: whole words, one token each."""
    vocabulary = (archives.minilm() / "vocab.txt").read_text().splitlines()
    words = [word for word in vocabulary if len(word) > 2 and word.isascii() and word.isalpha()][:900]
    chance = random.Random(seed)
    return [" ".join(chance.choices(words, k=TOKENS - 2)) for _ in range(count)]


def bodies(count: int, seed: int = 0) -> list[bytes]:
    """Return ``count`` request bodies, ``{"inputs": sentence}``."""
    return [json.dumps({"inputs": sentence}).encode() for sentence in sentences(count, seed)]
