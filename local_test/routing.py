"""Which of an endpoint's containers gets a call. Pure.

A model is loaded on one container and asked there, so that its second call finds it warm and memory is not spent
twice. A hot model is copied: when every container that has it is busy with it, and another is less than half as busy,
that one loads it too. SageMaker says that it does so, not when; HOT is our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: Calls of one model under way on one container, from which on a second container is worth a copy.
HOT = 4


class Burden(NamedTuple):
    """What routing knows of one container. has_model: loaded or loading; calls: under way, for this model."""

    has_model: bool
    calls: int
    in_flight: int
    models: int


def choose(burdens: Sequence[Burden]) -> int:
    """Return the index of the container that gets a call; of equals the first. There must be one at least."""
    holders = [i for i, each in enumerate(burdens) if each.has_model]
    others = [i for i, each in enumerate(burdens) if not each.has_model]
    if not holders:
        return min(others, key=lambda i: (burdens[i].models, burdens[i].in_flight))
    best = min(holders, key=lambda i: burdens[i].in_flight)
    if burdens[best].calls < HOT or not others:
        return best
    other = min(others, key=lambda i: (burdens[i].in_flight, burdens[i].models))
    return other if 2 * burdens[other].in_flight < burdens[best].in_flight else best
