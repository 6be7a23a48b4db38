"""Rising and sinking where RAM lies under a device of its own: disk, RAM, device, each with its room.

    DISK ──read──> RAM ──lift──> DEVICE        room in RAM first, then on the device; what is reading keeps its room
    DEVICE ──lower──> RAM ──drop──> DISK       nothing moves: weights never change

The copy in RAM stays under a model that is on the device as long as there is room for it; under pressure it goes first
where it is oldest, and then the model sinks to the disk. A model for which RAM has no room at all passes through plain
memory. Where bytes are free but not in one piece, the cheapest neighbours sink.

Authors' models in the process that guests share go the same ways, but for the first: their code loads them, and what
can be moved of them (``model/moving``) has its copy in RAM there, outside of the arena. What cannot be moved, has no
room in RAM, or has a process of its own, rises and sinks as in ``residence``. Files under a model in RAM are looked at
when it rises; if they were changed, its code loads it anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from container import log
from container.engine.children import ChildRunner
from container.engine.lifecycle import Life, Residency
from container.engine.models import Model, Registry
from container.engine.residence import Residence
from container.engine.runners import Runner
from container.engine.tier_runner import TierRunner
from container.errors import LargerThanTier, MemoryBusy, NoRoom, OutOfMemory, Restarting
from container.memory import plan
from container.memory.arena import NoRun
from container.memory.keeper import Keeper
from container.memory.ledger import Tier

_log = log.get(__name__)


class Mover(Runner, Protocol):
    """A Runner whose models may lie in RAM under the device."""

    async def lift(self, name: str) -> float:
        """Bring ``name`` from RAM to the device; return the seconds of that. Raises ServingError."""

    async def lower(self, name: str) -> bool:
        """Leave the device; what is in RAM stays there. False if it does not: then ``name`` has to be put down."""

    async def forget_copy(self, name: str) -> None:
        """Give up what lies in RAM of ``name``, which is on the device and stays there."""


class TieredResidence(Residence):
    """Moves models between the disk, RAM and the device; ``tiers`` runs our own, guests are in children."""

    def __init__(self, models: Registry, keeper: Keeper, tiers: TierRunner) -> None:
        super().__init__(models, keeper, tiers)
        self._tiers = tiers
        #: Models of host children with a place in RAM.
        self._adopted: set[str] = set()

    async def sink(self, name: str, tier: Tier = Tier.DEVICE) -> int:
        """Take ``name`` from ``tier``; return the bytes that are free by then."""
        model = self._models.get(name)
        mover = _mover_of(model) if model is not None else None
        if model is None or mover is None:
            return await super().sink(name, tier)
        if tier is Tier.HOST and model.residency in (Residency.HOST, Residency.DEVICE):
            return await self._forget_copy(model, mover)
        if tier is not Tier.DEVICE or model.residency is not Residency.DEVICE:
            await asyncio.sleep(0)  # on its way; whoever asked plans again
            return 0
        self._ledger.demote(name, Tier.DEVICE)
        model.reside("sink")
        with self._holding(name):  # nobody takes from under it what it sinks to
            stays = await self._come_down(model, mover)
        return self._settle(model, stays)

    async def leave(self, name: str) -> int:
        """Take ``name`` from every tier; return the bytes that are free by then."""
        freed = 0
        if name in self._ledger.used_by(Tier.HOST):  # first: then nothing is lowered to it
            freed = await self.sink(name, Tier.HOST)
        return freed + await self.sink(name)

    def lost(self, model: Model) -> None:
        """See Residence; what the process had in RAM went as well. A rise that is under way sees to itself."""
        super().lost(model)
        if model.residency is Residency.HOST:
            model.reside("lost")
        if model.residency is Residency.DISK and model.name in self._ledger.used_by(Tier.HOST):
            self._give_up(model, Tier.HOST)

    async def _forget_copy(self, model: Model, mover: Mover) -> int:
        """Give up the copy in RAM. A model that is on the device stays there, and sinks to the disk next time."""
        self._ledger.demote(model.name, Tier.HOST)
        if model.residency is Residency.DEVICE:
            await mover.forget_copy(model.name)
        else:
            model.reside("sink")
            await mover.put_down(model.name)
            if model.residency is Residency.SINKING:  # else its process died meanwhile
                model.reside("at_disk")
        freed = self._ledger.release(model.name, Tier.HOST)
        self._tell_of_adopted()
        self._keeper.changed()
        return freed

    async def _come_down(self, model: Model, mover: Mover) -> bool:
        """Take ``model`` from the device; return whether it lies in RAM now, else it is nowhere."""
        if model.name in self._ledger.used_by(Tier.HOST) and await mover.lower(model.name):
            return True
        await mover.put_down(model.name)
        if model.name in self._ledger.used_by(Tier.HOST):
            self._give_up(model, Tier.HOST)
        return False

    async def _rise(self, model: Model, deadline_s: float) -> None:
        if model.residency is Residency.HOST and isinstance(model.runner, ChildRunner):
            with self._holding(model.name):
                same = await self.is_as_it_was(model)
            if not same and model.residency is Residency.HOST:
                _log.info("the files of %s were changed since it was loaded; it is loaded anew", model.name)
                await asyncio.shield(self.sink(model.name, Tier.HOST))
        await super()._rise(model, deadline_s)

    async def _ascend(self, model: Model, deadline_s: float) -> None:
        if isinstance(model.runner, ChildRunner):
            with self._holding(model.name):
                await self._ascend_in_child(model, model.runner, deadline_s)
            return
        if model.runner is not self._tiers:
            await super()._ascend(model, deadline_s)
            return
        plan.check_size(self._ledger, Tier.DEVICE, model.name)
        with self._holding(model.name):  # nobody takes from under it what has come up already
            if model.residency is Residency.DISK:
                await self._read(model, deadline_s)
            else:
                model.reside("rise")
            await self._keeper.reserve(model.name, deadline_s)
            await self._lift(model, deadline_s)
        if model.name not in self._ledger.used_by(Tier.HOST):
            await self._tiers.forget_copy(model.name)  # nor may it keep what it shares with those who are booked
        self._ledger.commit(model.name, Tier.DEVICE)

    async def _ascend_in_child(self, model: Model, runner: ChildRunner, deadline_s: float) -> None:
        """Lift what lies in RAM, have the rest loaded. What went with its process while it rose is loaded, too."""
        name = model.name
        plan.check_size(self._ledger, Tier.DEVICE, name)
        in_ram = model.residency is Residency.HOST
        if in_ram:
            model.reside("rise")
        else:
            await self._keep_room(model)
        await self._keeper.reserve(name, deadline_s)
        await self.trim()
        if in_ram:
            try:
                self._ledger.rose(name, await runner.lift(name))
                self._ledger.commit(name, Tier.DEVICE)
                return
            except Restarting:
                self._give_up(model, Tier.HOST)
                await self._keep_room(model)
        else:
            model.reside("rise")
        assert model.manifest is not None
        keep = name in self._ledger.reserved_by(Tier.HOST)
        up = await runner.bring_up(name, model.manifest, keep=keep)
        self._came_up(model, up)
        if keep:
            await self._keep_copy(model, runner, movable=up.movable)
            if not runner.has(name):
                raise Restarting("the process died when the model had just come up", retry_after_s=1.0)

    async def _keep_room(self, model: Model) -> None:
        """Reserve room in RAM if it is to be had at once; a model of a child needs none if it never sinks."""
        in_child = isinstance(model.runner, ChildRunner)
        if in_child and (self._ledger.entry(model.name).pinned or not self._keeper.sinks):
            return
        try:
            await self._keeper.reserve(model.name, 0.0, Tier.HOST)
        except (LargerThanTier, NoRoom, MemoryBusy) as error:
            _log.info("%s passes through RAM and does not stay there: %s", model.name, error)
            return
        if in_child:
            self._adopted.add(model.name)
            self._tell_of_adopted()

    async def _keep_copy(self, model: Model, runner: ChildRunner, *, movable: bool) -> None:
        """Book what a model that has come up keeps in RAM, unless it is opaque or larger than was predicted."""
        if movable:
            try:
                self._keeper.check_fit(model.name, Tier.HOST)
            except NoRoom as error:
                _log.info("%s keeps no copy in RAM: %s", model.name, error)
                await runner.forget_copy(model.name)
                movable = False
        if not movable:
            self._give_up(model, Tier.HOST)
            return
        self._ledger.commit(model.name, Tier.HOST)
        self._tell_of_adopted()
        await self._keeper.fit(model.name, Tier.HOST)

    def _tell_of_adopted(self) -> None:
        """Tell the arena in RAM how much of the limit is taken outside of it."""
        here = self._ledger.account(Tier.HOST)
        self._adopted = {name for name in self._adopted if here.has(name)}
        self._tiers.blocks.host.outside_bytes = sum(map(self._ledger.bytes, self._adopted))

    @contextmanager
    def _holding(self, name: str) -> Iterator[None]:
        self._ledger.hold(name)
        try:
            yield
        finally:
            self._ledger.unhold(name)

    async def _read(self, model: Model, deadline_s: float) -> None:
        """From the disk into RAM."""
        assert model.manifest is not None
        await self._keep_room(model)
        model.reside("rise")
        while model.name in self._ledger.reserved_by(Tier.HOST):
            try:
                await self._tiers.read(model.name, model.manifest, keep=True)
                break
            except NoRun as none:
                if not await self._clear(Tier.HOST, none.bytes, deadline_s):
                    self._give_up(model, Tier.HOST)
        else:
            await self._tiers.read(model.name, model.manifest, keep=False)
        up = await self._tiers.open(model.name, model.manifest)
        model.times_ms, model.example = up.times_ms, up.example
        self._ledger.recut(model.name, up.segments)
        if self._tiers.blocks.is_in_ram(model.name) and model.name in self._ledger.reserved_by(Tier.HOST):
            self._ledger.commit(model.name, Tier.HOST)
            await self._keeper.fit(model.name, Tier.HOST)
        elif model.name in self._ledger.reserved_by(Tier.HOST):
            self._give_up(model, Tier.HOST)

    async def _lift(self, model: Model, deadline_s: float) -> None:
        """From RAM to the device, where there is room, though perhaps not in one piece."""
        while True:
            try:
                self._ledger.rose(model.name, await self._tiers.lift(model.name))
                return
            except NoRun as none:
                if await self._clear(Tier.DEVICE, none.bytes, deadline_s):
                    continue
                here = self._ledger.account(Tier.DEVICE)
                if not (here.used_by | here.reserved_by | here.leaving.keys()) - {model.name}:
                    raise OutOfMemory(
                        f"model {model.name!r} needs {none.bytes} bytes and the device has none to give, though no "
                        "other model is on it; lower BERTH_MEMORY_LIMIT, or see what else uses the device"
                    ) from None
                await self._keeper.wait(model.name, none.bytes, deadline_s)

    async def _clear(self, tier: Tier, nbytes: int, deadline_s: float) -> bool:
        """Sink the cheapest neighbours with ``nbytes`` in one piece; False if none sank, or the time is up."""
        if time.monotonic() >= deadline_s:
            return False
        victims = self._tiers.blocks.neighbours(tier, nbytes, self._cost)
        _log.info("no %d bytes in one piece on the %s tier; %s sink", nbytes, tier.value, sorted(victims) or "none can")
        return bool(victims) and await self._keeper.sink_these(sorted(victims), tier)

    def _cost(self, users: set[str], nbytes: int) -> float | None:
        """Bytes that have to come up again, weighed by nothing: neighbours are few and age alike."""
        entries = [self._ledger.entry(user) for user in users if user in self._ledger]
        if len(entries) < len(users) or any(each.holds or each.pinned for each in entries):
            return None
        return float(nbytes)

    async def _fall_back(self, model: Model) -> None:
        mover = _mover_of(model)
        if mover is None:
            await super()._fall_back(model)
            return
        stays = False
        if model.life is Life.LOADING:
            await mover.put_down(model.name)
        else:
            stays = await self._come_down(model, mover)
        for tier in (Tier.DEVICE, Tier.HOST):
            here = self._ledger.account(tier)
            kept = stays and tier is Tier.HOST
            if model.name in here.reserved_by or (model.name in here.used_by and not kept):
                self._give_up(model, tier)
        if model.residency is Residency.RISING:
            model.reside("failed")
        self._settle(model, stays)

    def _give_up(self, model: Model, tier: Tier) -> None:
        """Give a reservation back, or a place whose bytes are gone."""
        holds = self._ledger.entry(model.name).holds
        if holds:
            self._ledger.unhold(model.name)
        self._ledger.demote(model.name, tier)
        self._ledger.release(model.name, tier)
        if holds:
            self._ledger.hold(model.name)
        self._tell_of_adopted()
        self._keeper.changed()

    def _settle(self, model: Model, stays: bool) -> int:
        freed = 0
        if model.name in self._ledger.leaving(Tier.DEVICE):
            freed = self._ledger.release(model.name, Tier.DEVICE)
        if model.residency is Residency.SINKING:
            model.reside("at_host" if stays else "at_disk")
        self._keeper.changed()
        return freed


def _mover_of(model: Model) -> Mover | None:
    """Return who moves ``model``, None for one that has a process of its own, which ends when it sinks."""
    return model.runner if isinstance(model.runner, (TierRunner, ChildRunner)) else None
