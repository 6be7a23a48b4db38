"""Cutting what waits for one model into runs: a pure decision over sizes.

A batch is padded to its largest member, so a run of ``n`` inputs costs ``n x largest`` units. Sorting by size and
cutting where the padding grows keeps that near the sum of the sizes. But a run has a price of its own, whatever is in
it (launches, threads that meet, layers of Python): splitting off two short texts to save ten tokens makes things
slower. So a batch goes on while its padding is under ``max_padding`` of what it computes *or* cheaper than one more run
(``run_cost`` units). 32 lengths between 8 and 24 come out at 9.5 % padding in four runs,
between 8 and 127 at 7.5 % in eight; sizes that are all alike in one.

Does not cover: which model runs and how many of its requests are taken (``model/queues``).
"""

from __future__ import annotations

from collections.abc import Sequence

#: The price of one run in units of size: what a small encoder's fixed costs are worth in tokens on two CPU cores.
RUN_COST = 16
#: Share of a run's units that may be padding. With what small runs add, the whole stays under goals.md's 10 %.
MAX_PADDING = 0.08


def cut(
    sizes: Sequence[int],
    budget: int,
    max_items: int,
    max_padding: float = MAX_PADDING,
    run_cost: int = RUN_COST,
) -> list[list[int]]:
    """Return the indices of ``sizes`` as batches, the batch of the smallest first.

    Every index comes once. A batch has at most ``max_items`` members and at most ``budget`` units
    (``len(batch) x largest``); an input over the budget goes alone. Inside a batch the largest comes first.
    """
    count = len(sizes)
    if count == 1:
        return [[0]]
    batches: list[list[int]] = []
    batch: list[int] = []
    largest = padding = 0
    for index in sorted(range(count), key=sizes.__getitem__, reverse=True):
        size = sizes[index]
        computed = (len(batch) + 1) * largest
        wasted = padding + largest - size
        if (
            batch
            and len(batch) < max_items
            and computed <= budget
            and (wasted <= run_cost or wasted <= max_padding * computed)
        ):
            batch.append(index)
            padding = wasted
        else:
            batch = [index]
            batches.append(batch)
            largest, padding = size, 0
    batches.reverse()
    return batches
