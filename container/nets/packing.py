"""Texts of different lengths in one run without padding: sorted, laid end to end, cut by tokens. Pure.

    lengths 7, 3, 7, 4  ->  order [1, 3, 0, 2], groups (1 of 3), (1 of 4), (2 of 7), then a filler up to a round count

The dense layers see one matrix of tokens; attention runs once for each group of equal length, without a mask.
The filler is a sequence of its own that nobody reads; it keeps the number of different matrix heights small, since
kernels are compiled for each (nets/linear), at 6 % more rows on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

Group = tuple[int, int]  # (how many sequences, how long each)


class Pack(NamedTuple):
    """One run. order: indices of the texts, shortest first; groups: runs of equal length in that order.

    filler: tokens added behind them; rows: all tokens of the run.
    """

    order: list[int]
    groups: list[Group]
    filler: int
    rows: int


def round_rows(rows: int) -> int:
    """Return ``rows`` rounded up: to 4 below 32, and to an eighth to a quarter of itself above."""
    step = 4
    while rows > 8 * step:
        step *= 2
    return -(-rows // step) * step


def pack(lengths: Sequence[int], budget: int) -> list[Pack]:
    """Return the runs for texts of ``lengths`` tokens, each of at most ``budget`` tokens or one text."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    cuts, tokens = [0], 0
    for place, index in enumerate(order):
        if tokens and tokens + lengths[index] > budget:
            cuts.append(place)
            tokens = 0
        tokens += lengths[index]
    packs = []
    for start, end in zip(cuts, [*cuts[1:], len(order)], strict=True):
        part = order[start:end]
        groups = [(len(list(same)), length) for length, same in groupby(lengths[index] for index in part)]
        tokens = sum(count * length for count, length in groups)
        packs.append(Pack(part, groups, round_rows(tokens) - tokens, round_rows(tokens)))
    return packs if lengths else []
