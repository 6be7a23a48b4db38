"""Bytes lent to running work beside a model's weights: the keys and values of generations.

    take (never waits for others' work) ──> Loan ──end──> back
    wait (first come, first served) ──────> Loan

A loan is an entry of the ledger's book of its own, held from its first moment, so that the planner counts it, sinks
idle models for it, and lets whoever needs its place wait for its end. One that can never be had is LargerThanTier, one
that pinned models leave no room for is NoRoom, one that running work kept until the deadline is MemoryBusy.

Lives on the engine's event loop. Does not cover: who claims how much (``container.handler.Claim``).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from container.errors import LargerThanTier, MemoryBusy, NoRoom
from container.memory import plan
from container.memory.keeper import Keeper
from container.memory.ledger import Segment, Tier


@dataclass(slots=True, eq=False)
class Loan:
    """``bytes`` of the device for the work of model ``owner``; ``name``: its entry of the ledger."""

    owner: str
    name: str
    bytes: int
    ended: Callable[[Loan], None]

    def end(self) -> None:
        """Give the bytes back; once."""
        self.ended(self)


class Loans:
    """All loans of one device. trimmed: gives memory that sunk models left back to the driver."""

    def __init__(self, keeper: Keeper, trimmed: Callable[[], Awaitable[None]] | None = None) -> None:
        self._keeper = keeper
        self._ledger = keeper.ledger
        self._trimmed = trimmed
        self._numbers = itertools.count(1)
        self._line: deque[asyncio.Event] = deque()
        self._lent: Counter[str] = Counter()

    def room(self, owner: str) -> int:
        """Return the bytes that one loan to ``owner`` can ever have: what its weights leave. From any thread."""
        return self._ledger.beside(owner, Tier.DEVICE)

    def bytes(self, owner: str = "") -> int:
        """Return the bytes lent to ``owner`` now, to all if not given."""
        return self._lent[owner] if owner else self._lent.total()

    async def take(self, owner: str, least: int, most: int) -> Loan | None:
        """Return a loan of ``least`` to ``most`` bytes, as much as there is once idle models have sunk; None = not now.

        Nobody overtakes those who wait.
        """
        if self._line or owner not in self._ledger:
            return None
        for wanted in dict.fromkeys((most, min(most, self._ledger.figures(Tier.DEVICE).free), least)):
            if wanted >= max(1, least):
                try:
                    return await self._lend(owner, wanted)
                except (plan.Wait, NoRoom, LargerThanTier):
                    continue
        return None

    async def wait(self, owner: str, nbytes: int, since_s: float, deadline_s: float) -> Loan:
        """Return a loan of ``nbytes`` once it is there. Raises LargerThanTier, NoRoom, or MemoryBusy at the deadline.

        since_s: since when the request waits; models whose oldest request is younger sink for it.
        """
        my_turn = asyncio.Event()
        self._line.append(my_turn)
        try:
            if self._line[0] is not my_turn:
                async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
                    await my_turn.wait()
            while True:
                try:
                    return await self._lend(owner, nbytes, since_s)
                except plan.Wait:
                    if not await self._keeper.change(deadline_s):
                        raise TimeoutError from None
        except TimeoutError:
            raise busy(owner, nbytes) from None
        finally:
            self._line.remove(my_turn)
            if self._line:
                self._line[0].set()

    async def _lend(self, owner: str, nbytes: int, since_s: float | None = None) -> Loan:
        """Raises plan.Wait, LargerThanTier, NoRoom."""
        name = f"{owner}/{next(self._numbers)}"
        before = self._keeper.demotions
        self._ledger.add(name, [Segment(name, nbytes)], owner=owner)
        self._ledger.queue(name, since_s)
        try:
            await self._keeper.reserve_now(name)
        except BaseException:
            self._ledger.drop(name)
            raise
        self._ledger.commit(name, Tier.DEVICE)
        self._ledger.hold(name)
        self._ledger.queue(name, None)
        self._lent[owner] += nbytes
        loan = Loan(owner, name, nbytes, self._end)
        if self._trimmed is not None and self._keeper.demotions > before:
            try:
                await self._trimmed()
            except BaseException:
                loan.end()
                raise
        return loan

    def _end(self, loan: Loan) -> None:
        self._ledger.unhold(loan.name)
        self._ledger.demote(loan.name, Tier.DEVICE)
        self._ledger.release(loan.name, Tier.DEVICE)
        self._ledger.drop(loan.name)
        self._lent[loan.owner] -= loan.bytes
        if not self._lent[loan.owner]:
            del self._lent[loan.owner]
        self._keeper.changed()


def busy(owner: str, nbytes: int) -> MemoryBusy:
    """Return what a request is told whose bytes were not free in its time."""
    return MemoryBusy(
        f"a request to model {owner!r} needs {nbytes} bytes beside its weights, which others in flight kept until "
        "its time was up; try again, ask for less, or raise BERTH_MEMORY_LIMIT",
        retry_after_s=1.0,
    )
