"""Rising and sinking, one model at a time: the steps between the ledger, the runner and the model's own record."""

from __future__ import annotations

import asyncio

from container import log
from container.engine.lifecycle import Residency
from container.engine.models import Model, Registry
from container.errors import LargerThanTier, OutOfMemory, ServingError
from container.memory.keeper import Keeper
from container.memory.ledger import Tier

_log = log.get(__name__)


class Residence:
    """Moves models between the disk and the device."""

    def __init__(self, models: Registry, keeper: Keeper) -> None:
        self._models = models
        self._keeper = keeper
        self._ledger = keeper.ledger
        self.promotions = 0

    async def rise(self, model: Model, deadline_s: float) -> None:
        """Bring ``model`` to the device. Raises ServingError; then it is on the disk and the bytes are back."""
        await self._keeper.reserve(model.name, deadline_s)
        model.reside("rise")
        try:
            await self._bring_up(model)
        except (ServingError, asyncio.CancelledError):
            await self._fall_back(model)
            raise
        self.promotions += 1
        model.reside("at_device")
        await self._keeper.fit()

    async def sink(self, name: str) -> None:
        """Take ``name`` from the device; its bytes are free when this returns."""
        model = self._models.get(name)
        if model is None or model.residency is not Residency.DEVICE or model.runner is None:
            return
        self._ledger.demote(name, Tier.DEVICE)
        model.reside("sink")
        await model.runner.put_down(name)
        self._leave(model)

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

    async def _bring_up(self, model: Model) -> None:
        assert model.runner is not None
        assert model.manifest is not None
        try:
            loaded = await model.runner.bring_up(model.name, model.manifest)
        except OutOfMemory:
            if not await self._keeper.sink_idle():
                raise
            _log.warning("out of memory while %s was rising; idle models sank, trying once more", model.name)
            loaded = await model.runner.bring_up(model.name, model.manifest)
        limit = self._ledger.figures(Tier.DEVICE).limit
        if loaded.bytes > limit:
            raise LargerThanTier(
                f"model {model.name!r} takes {loaded.bytes} bytes when loaded and the limit is {limit}; it can never "
                f"fit, whatever else is unloaded; raise BERTH_MEMORY_LIMIT to at least {loaded.bytes}"
            )
        model.times_ms = loaded.times_ms
        self._ledger.commit(model.name, Tier.DEVICE, loaded.bytes)

    async def _fall_back(self, model: Model) -> None:
        """A rise failed: put down what may be there, give the reservation back."""
        if model.runner is not None:
            await asyncio.shield(model.runner.put_down(model.name))
        self._ledger.demote(model.name, Tier.DEVICE)
        if model.residency is Residency.RISING:
            model.reside("failed")
        self._leave(model)

    def _leave(self, model: Model) -> None:
        if model.name in self._ledger.leaving(Tier.DEVICE):
            self._ledger.release(model.name, Tier.DEVICE)
        if model.residency is Residency.SINKING:
            model.reside("at_disk")
        self._keeper.changed()
