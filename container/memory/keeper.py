"""Carries out what ``memory/plan`` decides: makes room, one model sinking after the other, and waits where told to.

Lives on the engine's event loop and is the ledger's only writer. Does not cover: how a model's bytes move (the engine
hands in ``sink``), which model gives way (``plan``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from container import log
from container.errors import MemoryBusy, NoRoom
from container.memory import plan
from container.memory.ledger import Ledger, Tier
from container.memory.order import Coldest, lrfu

_log = log.get(__name__)
_MOMENT_S = 0.05
#: All idle models sink at most this often for one model that runs out of memory.
SINK_AGAIN_S = 10.0


class Keeper:
    """The doing side of the memory; one for a device."""

    def __init__(
        self,
        ledger: Ledger,
        sink: Callable[[str, Tier], Awaitable[object]],
        policy: plan.Policy,
        marks: plan.Marks | None = None,
    ) -> None:
        self.ledger = ledger
        self._coldest = {tier: Coldest(ledger, tier, lrfu) for tier in ledger.tiers}
        self._sink = sink
        self._policy: plan.Policy = policy
        self._changed: asyncio.Event = asyncio.Event()
        self._sank_for: dict[str, float] = {}
        self.demotions = 0
        self._marks = marks
        self._easing: dict[Tier, asyncio.Task[int]] = {}
        #: Brings the machine's own figures into the ledger; called before each plan.
        self.look: Callable[[], None] = lambda: None
        #: Lets what is kept for nobody go as far as it takes more than these bytes; called after each plan.
        self.give_way: Callable[[int], None] = lambda free_bytes: None

    @property
    def sinks(self) -> bool:
        """Whether models give way to others at all."""
        return self._policy != "platform"

    async def reserve(self, name: str, deadline_s: float, tier: Tier = Tier.DEVICE) -> None:
        """Reserve the bytes of ``name`` on ``tier``, sinking idle models as planned.

        Raises LargerThanTier or NoRoom at once, MemoryBusy when work in flight kept the bytes until ``deadline_s``.
        """
        while True:
            try:
                await self.reserve_now(name, tier)
            except plan.Wait as wait:
                await self._wait(deadline_s, name, wait)
                continue
            return

    async def reserve_now(self, name: str, tier: Tier = Tier.DEVICE) -> None:
        """Reserve as ``reserve`` does, waiting only for idle models to sink. Raises plan.Wait, too."""
        while True:
            self._changed.clear()
            self.look()
            steps = plan.make_room(self.ledger, tier, name, order=self._coldest[tier], policy=self._policy)
            demotions = [step for step in steps if isinstance(step, plan.Demote)]
            if not demotions:
                self.ledger.reserve(name, tier)
                self.give_way(self.ledger.figures(tier).free)
                return
            await self._carry_out(demotions)

    def ease(self, spared: str) -> None:
        """Begin to sink idle models but ``spared`` in the background where a tier is over its high mark."""
        if self._marks is None or self._policy == "platform":
            return
        for tier in self.ledger.tiers:
            if tier not in self._easing:
                steps = plan.ease(self.ledger, tier, self._marks, order=self._coldest[tier], spared=spared)
                if steps:
                    task = asyncio.get_running_loop().create_task(self._carry_out(steps))
                    self._easing[tier] = task
                    task.add_done_callback(lambda done, tier=tier: self._easing.pop(tier))  # type: ignore[misc]

    def check_fit(self, name: str, tier: Tier = Tier.DEVICE) -> None:
        """Raise NoRoom if ``name``, larger than predicted, takes ``tier`` over its limit and no sinking mends it."""
        over = self.ledger.figures(tier).over
        if not over or (self._policy != "platform" and plan.fits(self.ledger, tier, name)):
            return
        why = "BERTH_EVICTION=platform forbids sinking others" if self._policy == "platform" else "others are pinned"
        why = plan.short_machine(self.ledger.account(tier)) or why
        raise NoRoom(
            f"model {name!r} turned out to take {self.ledger.bytes(name)} bytes when it was loaded, {over} more than "
            f"there is room for on the {tier.value} tier, and {why}; unload a model or raise {plan.setting(tier)}"
        )

    async def fit(self, spared: str, tier: Tier = Tier.DEVICE) -> None:
        """Sink idle models but ``spared`` while measured bytes are over the limit; what is in use may keep it so."""
        while (over := self.ledger.figures(tier).over) > 0:
            idle = plan.idle_models(self.ledger, tier, order=self._coldest[tier])
            demotions = [step for step in idle if step.name != spared][:1]
            if not demotions or self._policy == "platform":
                _log.warning("models take %d bytes over the limit and all of them are in use", over)
                break
            await self._carry_out(demotions)
        self.give_way(self.ledger.figures(tier).free)

    async def sink_idle(self, name: str) -> int:
        """Sink every idle model: what a real out-of-memory error of ``name`` is answered with. Return how many sank.

        Not again for the same model for a while: one that fails so each time must not keep all others from the device.
        """
        now = time.monotonic()
        self._sank_for = {one: until_s for one, until_s in self._sank_for.items() if until_s > now}
        if self._policy == "platform" or name in self._sank_for:
            return 0
        self._sank_for[name] = now + SINK_AGAIN_S
        self.give_way(0)
        demotions = plan.idle_models(self.ledger, Tier.DEVICE, order=self._coldest[Tier.DEVICE])
        sank = await self._carry_out(demotions)
        _log.warning("model %s ran out of memory; %d idle models sank so that it can try once more", name, sank)
        return sank

    async def sink_these(self, names: Iterable[str], tier: Tier) -> bool:
        """Sink ``names`` as far as they are idle; return whether any did."""
        if self._policy == "platform":
            return False
        return await self._carry_out([plan.Demote(name, tier, Tier.DISK) for name in names]) > 0

    async def wait(self, name: str, nbytes: int, deadline_s: float) -> None:
        """Return when something has changed, or a moment later. Raises MemoryBusy once ``deadline_s`` has passed."""
        if time.monotonic() >= deadline_s:
            raise MemoryBusy(
                f"model {name!r} needs {nbytes} bytes in one piece, and models with requests in flight lay between "
                "until its time was up; try again, or raise BERTH_MEMORY_LIMIT",
                retry_after_s=1.0,
            )
        self._changed.clear()
        try:
            async with asyncio.timeout(_MOMENT_S):
                await self._changed.wait()
        except TimeoutError:
            return

    async def change(self, deadline_s: float) -> bool:
        """Return once something has ended that a plan may have waited for; False if ``deadline_s`` passed first."""
        try:
            async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def changed(self) -> None:
        """Something ended that a plan may have waited for."""
        self._changed.set()

    async def _carry_out(self, demotions: list[plan.Demote]) -> int:
        """Return how many sank."""
        sank = 0
        for step in demotions:
            # Whoever asked may be cancelled; what has begun to sink arrives all the same.
            sank += await asyncio.shield(asyncio.ensure_future(self._demote(step)))
        return sank

    async def _demote(self, step: plan.Demote) -> bool:
        entry = self.ledger.entry(step.name) if step.name in self.ledger else None
        if entry is None or entry.holds or step.name not in self.ledger.used_by(step.source):
            return False  # called, unloaded or sunk since the plan was made; the next plan will see
        await self._sink(step.name, step.source)
        sank = step.name not in self.ledger.used_by(step.source)
        self.demotions += sank
        return sank

    async def _wait(self, deadline_s: float, name: str, wait: plan.Wait) -> None:
        if not await self.change(deadline_s):
            raise MemoryBusy(
                f"model {name!r} needs {wait.needed_bytes} bytes that {len(wait.for_)} other models held with "
                "requests in flight until this one's time was up; try again, or raise BERTH_MEMORY_LIMIT",
                retry_after_s=1.0,
            )
