"""What the demo asks its models, and how it judges the answers. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

SENTENCE = "A cat is sleeping on the sofa."
NEAR = "The kitten naps on the couch."
FAR = "Share prices fell sharply in London today."
PROMPT = "Alice was beginning to get very tired of"
DIGIT = 7
DIGIT_NAME = "seven"
CELSIUS = (0, 37, 100)
FAHRENHEIT = (32.0, 98.6, 212.0)


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors of the same length."""
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def near_and_far(vectors: Any) -> tuple[float, float]:
    """Return cosine(SENTENCE, NEAR) and cosine(SENTENCE, FAR). Raises ValueError for another answer than 3 vectors."""
    sentence, near, far = _three(vectors)
    return cosine(sentence, near), cosine(sentence, far)


def _three(vectors: Any) -> list[list[float]]:
    if not isinstance(vectors, list) or [len(v) for v in vectors if isinstance(v, list)] != [384] * 3:
        raise ValueError(f"expected three vectors of 384 numbers, got {str(vectors)[:100]}")
    return vectors


def written(answer: Any) -> str:
    """Return the text of a text-generation answer, the prompt included. Raises ValueError."""
    try:
        text: str = answer[0]["generated_text"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"expected [{{'generated_text': ...}}], got {str(answer)[:100]}") from error
    return text


def agreement(text: str, book: str) -> str:
    """Return how far ``text`` is what the book says from PROMPT on. Both begin with PROMPT."""
    passage = book[book.index(PROMPT) :]
    said = text.rstrip("\ufffd")  # a token may end inside a character
    same = next(
        (i for i, (a, b) in enumerate(zip(said, passage, strict=False)) if a != b), min(len(said), len(passage))
    )
    return said[:same]


def best_labels(answer: Any) -> list[tuple[str, float]]:
    """Return (label, score) of an image-classification answer, best first. Raises ValueError."""
    try:
        found = [(str(each["label"]), float(each["score"])) for each in answer]
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected [{{'label': ..., 'score': ...}}], got {str(answer)[:100]}") from error
    if not found:
        raise ValueError("expected at least one label")
    return sorted(found, key=lambda pair: -pair[1])


def drawing(grey: Sequence[int], width: int) -> list[str]:
    """Return a picture of 0..255 values as lines of text, every second row of it, as characters are tall."""
    shades = " .:-=+*#%@"
    rows = [grey[at : at + width] for at in range(0, len(grey), width)]
    return ["".join(shades[value * len(shades) // 256] for value in row) for row in rows[::2]]


def memory_limit(model_bytes: Sequence[int]) -> int:
    """Return a limit in bytes under which the two largest models do not fit together, but either does with the rest.

    Half of the second largest is left free beside the largest: the sizes are estimates, and there are small ones, too.
    """
    largest, second = sorted(model_bytes, reverse=True)[:2]
    return largest + second // 2


def same_vectors(one: Any, other: Any) -> bool:
    """Say whether two answers are the same vectors up to the last digits. Raises ValueError for other answers."""
    pairs = zip(_three(one), _three(other), strict=True)
    return all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-5) for xs, ys in pairs for a, b in zip(xs, ys, strict=True))


def kept_once(one: int, all_: int, size: int) -> bool:
    """Say whether further copies took no bytes of their own: one may be whole now that was only touched in part before.

    one, all_: memory of the server with one copy and with all; size: bytes of a copy's weights.
    """
    return all_ - one < size
