"""Rising and sinking where RAM lies under a device of its own: disk, RAM, device, each with its room.

    DISK ──read──> RAM ──lift──> DEVICE        room in RAM first, then on the device; what is reading keeps its room
    DEVICE ──lower──> RAM ──drop──> DISK       nothing moves: weights never change

The copy in RAM stays under a model that is on the device as long as there is room for it; under pressure it goes first
where it is oldest, and then the model sinks to the disk. A model for which RAM has no room at all passes through plain
memory. Where bytes are free but not in one piece, the cheapest neighbours sink.

Models of host children have no tier in RAM: they rise and sink as in ``residence``.
"""

from __future__ import annotations

import asyncio
import time

from container import log
from container.engine.lifecycle import Life, Residency
from container.engine.models import Model, Registry
from container.engine.residence import Residence
from container.engine.tier_runner import TierRunner
from container.errors import LargerThanTier, MemoryBusy, NoRoom, OutOfMemory
from container.memory import plan
from container.memory.arena import NoRun
from container.memory.keeper import Keeper
from container.memory.ledger import Tier

_log = log.get(__name__)


class TieredResidence(Residence):
    """Moves models between the disk, RAM and the device; ``tiers`` runs those that have all three."""

    def __init__(self, models: Registry, keeper: Keeper, tiers: TierRunner) -> None:
        super().__init__(models, keeper, tiers)
        self._tiers = tiers

    async def sink(self, name: str, tier: Tier = Tier.DEVICE) -> int:
        """Take ``name`` from ``tier``; return the bytes that are free by then."""
        model = self._models.get(name)
        if model is None or model.runner is not self._tiers:
            return await super().sink(name, tier)
        if tier is Tier.HOST and model.residency in (Residency.HOST, Residency.DEVICE):
            return await self._forget_copy(model)
        if tier is not Tier.DEVICE or model.residency is not Residency.DEVICE:
            await asyncio.sleep(0)  # on its way; whoever asked plans again
            return 0
        self._ledger.demote(name, Tier.DEVICE)
        model.reside("sink")
        stays = name in self._ledger.used_by(Tier.HOST)
        await (self._tiers.lower(name) if stays else self._tiers.put_down(name))
        return self._settle(model, stays)

    async def leave(self, name: str) -> int:
        """Take ``name`` from every tier; return the bytes that are free by then."""
        freed = await self.sink(name)
        model = self._models.get(name)
        if model is not None and model.residency is Residency.HOST:
            freed += await self.sink(name, Tier.HOST)
        return freed

    async def _forget_copy(self, model: Model) -> int:
        """Give up the copy in RAM. A model that is on the device stays there, and sinks to the disk next time."""
        self._ledger.demote(model.name, Tier.HOST)
        if model.residency is Residency.DEVICE:
            self._tiers.blocks.drop_host(model.name)
        else:
            model.reside("sink")
            await self._tiers.put_down(model.name)
            model.reside("at_disk")
        freed = self._ledger.release(model.name, Tier.HOST)
        self._keeper.changed()
        return freed

    async def _ascend(self, model: Model, deadline_s: float) -> None:
        if model.runner is not self._tiers:
            await super()._ascend(model, deadline_s)
            return
        plan.check_size(self._ledger, Tier.DEVICE, model.name)
        self._ledger.hold(model.name)  # nobody takes from under it what has come up already
        try:
            if model.residency is Residency.DISK:
                await self._read(model, deadline_s)
            else:
                model.reside("rise")
            await self._keeper.reserve(model.name, deadline_s)
            await self._lift(model, deadline_s)
        finally:
            self._ledger.unhold(model.name)
        if model.name not in self._ledger.used_by(Tier.HOST):
            self._tiers.blocks.drop_host(model.name)  # nor may it keep there what it shares with those who are booked
        self._ledger.commit(model.name, Tier.DEVICE)

    async def _read(self, model: Model, deadline_s: float) -> None:
        """From the disk into RAM."""
        assert model.manifest is not None
        try:
            await self._keeper.reserve(model.name, 0.0, Tier.HOST)
        except (LargerThanTier, NoRoom, MemoryBusy) as error:
            _log.info("%s passes through RAM and does not stay there: %s", model.name, error)
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
        if model.runner is not self._tiers:
            await super()._fall_back(model)
            return
        stays = model.name in self._ledger.used_by(Tier.HOST) and model.life is not Life.LOADING
        await (self._tiers.lower(model.name) if stays else self._tiers.put_down(model.name))
        for tier in (Tier.DEVICE, Tier.HOST):
            here = self._ledger.account(tier)
            if model.name in here.reserved_by or (model.name in here.used_by and not stays):
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
        self._keeper.changed()

    def _settle(self, model: Model, stays: bool) -> int:
        freed = 0
        if model.name in self._ledger.leaving(Tier.DEVICE):
            freed = self._ledger.release(model.name, Tier.DEVICE)
        if model.residency is Residency.SINKING:
            model.reside("at_host" if stays else "at_disk")
        self._keeper.changed()
        return freed
