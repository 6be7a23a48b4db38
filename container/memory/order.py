"""Which idle model goes first when room is needed: ordering functions, and the models of a tier kept in that order.

An ordering function gives a model a number; the smallest goes first. It may only grow when the model is used, which is
what lets ``Coldest`` sort no more than somebody looks at. Chosen by replay (``bench/policy.py``): ``lrfu``, decision
0006. Pure. Does not cover: who may go at all (``memory/plan``).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from typing import Literal

from container.memory.account import Tier
from container.memory.ledger import Entry, Ledger

Name = Literal["lru", "greedy_dual", "lrfu"]
#: Smaller goes first: (entry, its bytes) -> key. Ties are broken by name, so that a plan is reproducible.
Order = Callable[[Entry, int], float]


def lru(entry: Entry, nbytes: int) -> float:
    """Least recently used first."""
    return entry.used_at


def greedy_dual(entry: Entry, nbytes: int) -> float:
    """Least (frequency x cost of rising / bytes) first, aged by the value of what went before.

    Source: Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy", 1998.
    """
    return entry.value(nbytes)


def lrfu(entry: Entry, nbytes: int) -> float:
    """Least (recent frequency x cost of rising / bytes) first; the logarithm of that.

    Every use counts, and counts for half after a number of further requests that grows with the number of models
    (``Ledger.touch``). Source: Lee et al., "LRFU: A Spectrum of Policies that Subsumes the Least Recently Used and
    Least Frequently Used Policies", 2001; by cost and bytes as in greedy_dual.
    """
    return entry.heat + math.log2(max(entry.rise_cost, 1e-6) / max(1, nbytes))


ORDERS: dict[Name, Order] = {"lru": lru, "greedy_dual": greedy_dual, "lrfu": lrfu}


class Coldest:
    """The models on ``tier`` of ``ledger``, first who goes first.

    A heap of keys as they were when last looked at: a model that was used since has a larger one by now, is put back
    with that, and the next is looked at. So a use costs nothing here, and a plan costs a few steps for each victim.
    """

    def __init__(self, ledger: Ledger, tier: Tier, order: Order) -> None:
        self._ledger = ledger
        self._account = ledger.account(tier)
        self._order = order
        self._heap: list[tuple[float, str]] = []

    def __iter__(self) -> Iterator[str]:
        """Yield the names; to be closed or used up before the ledger changes."""
        account, heap = self._account, self._heap
        for name in account.arrived & account.used_by:
            heapq.heappush(heap, (self._key(name), name))
        account.arrived.clear()
        seen: dict[str, float] = {}
        try:
            while heap:
                key, name = heapq.heappop(heap)
                if name in seen or name not in account.used_by:
                    continue
                now = self._key(name)
                if now > key:
                    heapq.heappush(heap, (now, name))
                    continue
                seen[name] = now
                yield name
        finally:
            for name, key in seen.items():
                heapq.heappush(heap, (key, name))

    def _key(self, name: str) -> float:
        return self._order(self._ledger.entry(name), self._account.share(self._ledger.entry(name).segments))


def ranked(ledger: Ledger, tier: Tier, order: Order) -> list[str]:
    """Return what ``Coldest`` yields, by sorting everything."""
    account = ledger.account(tier)
    keys = [(order(ledger.entry(name), account.share(ledger.entry(name).segments)), name) for name in account.used_by]
    return [name for _, name in sorted(keys)]
