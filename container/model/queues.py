"""Which model runs next, and what of its queue: pure decisions over plain numbers.

Does not cover: threads, clocks, how a batch is cut into runs once sizes are known (``model/batches``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

#: A request that has waited this long goes before any gain in throughput, so that no model starves.
STARVING_S = 2.0
#: A job that is over sooner runs on one thread: to wake another for each of its operations takes about as long as it
#: saves, and whatever else wants a core then keeps both waiting (all-MiniLM-L6-v2, one sentence of 16 tokens, two
#: cores: 5.7 ms on one thread, 6.6 on two; a slower machine 12.2 and 12.0, p99 25 and 29 while others load).
ALONE_S = 0.016


class Candidate(NamedTuple):
    """A model with waiting requests. ``oldest_s``: age of its oldest; ``run_s``: expected time of its next batch."""

    name: str
    queued: int
    oldest_s: float
    run_s: float


def next_model(candidates: Iterable[Candidate]) -> str | None:
    """Return the model to run now: the most (queued work x response ratio), the oldest once one starves.

    The response ratio is how many times longer than its run the oldest has taken: short work goes first among what came
    together, and what is passed over gains with every moment, the more the shorter it is. By run time alone, the seldom
    called wait until none of the others is called (50 tiny models at full load: p99 37 ms; so 6, and as many answers).
    Source: Brinch Hansen, "Short-term scheduling in multiprogramming systems", 1971 (highest response ratio next).
    """
    best: Candidate | None = None
    best_score = -1.0
    starving: Candidate | None = None
    for candidate in candidates:
        if candidate.oldest_s >= STARVING_S and (starving is None or candidate.oldest_s > starving.oldest_s):
            starving = candidate
        score = candidate.queued * (1.0 + candidate.oldest_s / max(candidate.run_s, 1e-4))
        if score > best_score:
            best, best_score = candidate, score
    chosen = starving or best
    return chosen.name if chosen is not None else None


def next_batch(queued: int, max_items: int, lanes_free: int, share: bool) -> int:
    """Return how many of ``queued`` requests the next run takes.

    Work-conserving: everything that waits, up to ``max_items``. When the model may run on several lanes at once
    (``share``), the free lanes divide what waits, so that none idles beside a full one.
    """
    if share and lanes_free > 1:
        queued = -(-queued // lanes_free)
    return min(queued, max_items)


def threads(cores: int, busy: int, expected_s: float) -> int:
    """Return how many threads compute a job: all cores, shared among the ``busy`` lanes; one if it is short."""
    return 1 if expected_s < ALONE_S else max(1, cores // max(1, busy))
