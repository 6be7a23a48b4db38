"""Long work in steps, so that other models get the device in between (Handler.steps)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

R = TypeVar("R")


def in_inference(runs: Iterator[R], take: Callable[[R], object]) -> Iterator[None]:
    """Hand each of ``runs`` to ``take``, both in inference mode, and yield between them.

    Inference mode is the thread's, and the next step may come on another thread: it is never on across a yield.
    """
    while True:
        with torch.inference_mode():
            run = next(runs, None)
            if run is None:
                return
            take(run)
        yield


def slices(lengths: Sequence[int], most: int) -> Iterator[slice]:
    """Yield places in a row of texts, so that those of each slice have ``most`` characters together, or it is one."""
    start = size = 0
    for place, length in enumerate(lengths):
        if size + length > most and place > start:
            yield slice(start, place)
            start, size = place, 0
        size += length
    if start < len(lengths):
        yield slice(start, len(lengths))


def shares(counts: Iterable[int]) -> Iterator[slice]:
    """Yield each request's place where the items of all requests stand in one row; ``counts``: how many each has."""
    start = 0
    for count in counts:
        yield slice(start, start + count)
        start += count


def outcome(steps: Iterator[Any]) -> list[Any]:
    """Return what ``steps`` end with: what ``predict`` is for a handler whose work is written as steps."""
    *_, answers = steps
    assert isinstance(answers, list), "steps end with the answers"
    return answers
