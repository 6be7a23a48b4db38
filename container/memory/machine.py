"""The machine's own figures beside the ledger's: where it has less for models than the limit says, it wins.

Free RAM, or free memory of the device, is asked at most twice a second, when room is planned. What of the models' bytes
the machine itself counts as free (mapped files) or as taken though nobody uses it (arenas) is told by who asks.
Does not cover: what sinks then (``memory/plan``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from container.memory.ledger import Ledger, Tier

_EVERY_S = 0.5


class Machine:
    """free: for each tier that is asked about, the bytes that models could take beside those that they have."""

    def __init__(self, ledger: Ledger, free: Mapping[Tier, Callable[[], int]]) -> None:
        self._ledger = ledger
        self._free = free
        self._again_s = 0.0
        self._found: dict[Tier, int] = {}

    def look(self) -> None:
        """Bring the figures into the ledger, if the last time is a while ago."""
        now = time.monotonic()
        if now < self._again_s:
            return
        self._again_s = now + _EVERY_S
        for tier, free in self._free.items():
            sums = self._ledger.figures(tier)
            self._found[tier] = found = free()
            self._ledger.set_cap(tier, max(0, sums.used + sums.reserved + sums.leaving + found))

    def gaps(self) -> dict[Tier, int]:
        """Return by how much more is free for models by limit and ledger than by the machine, in bytes; looks anew."""
        self._again_s = 0.0
        self.look()
        gaps = {}
        for tier, found in self._found.items():
            sums = self._ledger.figures(tier)
            taken = sums.used + sums.reserved + sums.leaving
            gaps[tier] = self._ledger.account(tier).limit - taken - found
        return gaps
