"""Rising and sinking, one model at a time: the steps between the ledger, the runner and the model's own record."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping

from container import log
from container.engine.lifecycle import Life, Residency
from container.engine.models import Model, Registry
from container.engine.runners import OnLanes, Up
from container.errors import LargerThanTier, NeedsOwnProcess, OutOfMemory
from container.memory.keeper import Keeper
from container.memory.ledger import Segment, Tier

_log = log.get(__name__)


class Residence:
    """Moves models between the disk and the device. lanes: runs those that others may be given the memory of."""

    def __init__(self, models: Registry, keeper: Keeper, lanes: OnLanes) -> None:
        self._models = models
        self._keeper = keeper
        self._lanes = lanes
        self._ledger = keeper.ledger
        self._joining: dict[str, asyncio.Task[None]] = {}
        self._moving: set[str] = set()
        self.promotions = 0
        #: Reads the folder anew and writes into the ledger what it will take; sets manifest and runner.
        self.look: Callable[[Model], Awaitable[None]]
        #: Whether the folder is as it was when it was read.
        self.is_as_it_was: Callable[[Model], Awaitable[bool]]
        #: Sees to it that the next ``look`` gives the model a process of its own.
        self.set_apart: Callable[[Model, str], None]

    async def rise(self, model: Model, deadline_s: float) -> None:
        """Bring ``model`` to the device as its folder is now, in a process of its own if it comes up in no other.

        One that runs out of memory has a second try once what is idle has sunk. Raises ServingError; then it is on the
        disk, or in RAM under the device, and the bytes are back.
        """
        try:
            await self._rise(model, deadline_s)
        except NeedsOwnProcess:
            self.set_apart(model, "it does not load among others for want of its own modules")
            await self._rise(model, deadline_s)
        except OutOfMemory:
            if not await self.make_room(model):
                raise
            await self._rise(model, deadline_s)

    async def _rise(self, model: Model, deadline_s: float) -> None:
        try:
            if model.residency is Residency.DISK:
                await self.look(model)
            await self._ascend(model, deadline_s)
        except BaseException:  # a mistake of ours included: bytes that stayed booked would block the name for ever
            await asyncio.shield(self._fall_back(model))
            raise
        self.promotions += 1
        model.stale = False
        self._moving.discard(model.name)
        model.reside("at_device")
        self._keeper.changed()  # it may go again from here on, and somebody may wait for that
        await self._keeper.fit(model.name)
        self._keeper.ease(model.name)
        self._join(model)

    async def renew(self, model: Model) -> None:
        """Take ``model``, whose files or place changed, from the device once nothing of it runs; it can rise anew."""
        while model.held:
            await asyncio.sleep(0.001)
        await asyncio.shield(self.leave(model.name))  # an unload gives this up, and waits for the end of what began
        if model.name in self._moving:
            self._moving.discard(model.name)
            model.runner = None  # which keeps nothing of authors' models; the next ``look`` chooses another
        model.stale = False

    def move_apart(self, model: Model) -> None:
        """Have ``model``, which is up among others and cannot answer there, rise anew in a process of its own."""
        if not model.stale:
            self.set_apart(model, "its code looked for one of its own modules in vain while it answered")
            self._moving.add(model.name)
            model.stale = True

    async def sink(self, name: str, tier: Tier = Tier.DEVICE) -> int:
        """Take ``name`` from the device; return the bytes that are free by then: those that nobody else uses.

        tier: the device, where there is no other (``tiered``).
        """
        model = self._models.get(name)
        if model is None or model.residency is not Residency.DEVICE or model.runner is None:
            return 0
        self._ledger.demote(name, Tier.DEVICE)
        model.reside("sink")
        await model.runner.put_down(name, keep=True)
        return self._leave(model)

    async def leave(self, name: str) -> int:
        """Take ``name`` from every tier; return the bytes that are free by then."""
        return await self.sink(name)

    async def make_room(self, model: Model) -> int:
        """Sink every idle model, because an allocation of ``model`` failed; return how many sank."""
        sank = await self._keeper.sink_idle(model.name)
        await self.trim()
        return sank

    async def trim(self) -> None:
        """Give memory that sunk models left back to the system, or the driver, for whoever allocates."""
        await self._lanes.trim()

    def lost(self, model: Model) -> None:
        """The process that held the bytes of ``model`` died, and they went with it."""
        if model.residency in (Residency.DEVICE, Residency.SINKING):
            self.unhold(model)
            if model.residency is Residency.DEVICE:
                self._ledger.demote(model.name, Tier.DEVICE)
                self._ledger.release(model.name, Tier.DEVICE)
            model.reside("lost")
            self._keeper.changed()

    def hold(self, model: Model) -> None:
        """Keep ``model`` where it is while it has requests in flight."""
        if not model.held:
            model.held = True
            self._ledger.hold(model.name)

    def unhold(self, model: Model) -> None:
        """Nothing of ``model`` is in flight any more."""
        if model.held:
            model.held = False
            self._ledger.unhold(model.name)
            self._keeper.changed()

    def unwanted(self, model: Model) -> None:
        """Nothing waits for ``model`` any more: others may have its place."""
        if model.name in self._ledger:
            self._ledger.queue(model.name, None)
            self._keeper.changed()

    async def _ascend(self, model: Model, deadline_s: float) -> None:
        """Reserve, bring up, book."""
        await self._keeper.reserve(model.name, deadline_s)
        model.reside("rise")
        if not isinstance(model.runner, OnLanes):
            await self.trim()
        await self._bring_up(model)

    async def _bring_up(self, model: Model) -> None:
        assert model.runner is not None
        assert model.manifest is not None
        self._came_up(model, await model.runner.bring_up(model.name, model.manifest))

    def _came_up(self, model: Model, up: Up) -> None:
        self._book(model, up)
        model.times_ms, model.example = up.times_ms, up.example
        # What the work took, not what it waited for a thread: a busy moment would make a model look dear for long.
        self._ledger.rose(model.name, sum(up.times_ms.values()) / 1e3)

    def _book(self, model: Model, up: Up) -> None:
        """Reserved becomes used, by measured bytes."""
        nbytes, limit = sum(segment.bytes for segment in up.segments), self._ledger.account(Tier.DEVICE).limit
        if nbytes > limit:
            raise LargerThanTier(
                f"model {model.name!r} takes {nbytes} bytes when loaded and the limit is {limit}; it can never "
                f"fit, whatever else is unloaded; raise BERTH_MEMORY_LIMIT to at least {nbytes}"
            )
        self._ledger.recut(model.name, up.segments)
        self._keeper.check_fit(model.name)
        self._ledger.commit(model.name, Tier.DEVICE)

    async def _fall_back(self, model: Model) -> None:
        """A rise failed: put down what may be there, give the reservation back."""
        if model.runner is not None:
            await model.runner.put_down(model.name, keep=model.life is not Life.LOADING)
        if model.name in self._ledger.reserved_by(Tier.DEVICE):
            self._ledger.demote(model.name, Tier.DEVICE)
        if model.residency is Residency.RISING:
            model.reside("failed")
        self._leave(model)

    def _leave(self, model: Model) -> int:
        freed = 0
        if model.name in self._ledger.leaving(Tier.DEVICE):
            freed = self._ledger.release(model.name, Tier.DEVICE)
        if model.residency is Residency.SINKING:
            model.reside("at_disk")
        self._keeper.changed()
        return freed

    async def joined(self, name: str) -> None:
        """Return when ``name`` has found what it shares with others, at once if it does not look for it now."""
        if name in self._joining:
            await asyncio.wait([self._joining[name]])

    def _join(self, model: Model) -> None:
        """Let ``model`` share what it has in common with others, off the path."""
        task = asyncio.get_running_loop().create_task(self._share(model))
        self._joining[model.name] = task
        task.add_done_callback(functools.partial(self._forget_join, model.name))

    def _forget_join(self, name: str, task: asyncio.Task[None]) -> None:
        if self._joining.get(name) is task:  # the name may have come up anew while this one was in line
            del self._joining[name]

    async def _share(self, model: Model) -> None:
        assert model.runner is not None
        changed = await model.runner.join(model.name)
        self.shared(changed)
        if changed:
            await self._keeper.fit(model.name)

    def shared(self, changed: Mapping[str, list[Segment]]) -> None:
        """Models were found to have something in common: they consist of these segments from here on."""
        for name, segments in changed.items():
            if name in self._ledger:
                self._ledger.recut(name, segments)
        if changed:
            self._keeper.changed()
