"""The engine: the seven verbs, each handed to the part that does it.

Lives on one event loop and never blocks it: files are read on loader threads, batches run on lanes, authors' code runs
in host children.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from container.archive.manifest import TensorSpec, Triton
from container.engine.attachments import Attachments
from container.engine.calls import Calls
from container.engine.lifecycle import SHOWN
from container.engine.loading import Loading
from container.engine.models import Registry
from container.engine.residence import Residence
from container.errors import BadRequest
from container.memory.keeper import Keeper
from container.memory.ledger import Tier
from container.memory.loans import Loans
from container.memory.machine import Machine
from container.memory.tokenizers import Tokenizers
from container.metrics import Metrics
from container.wire import messages as m
from container.wire.api import Respond

_Reply = TypeVar("_Reply")


class Engine:
    """The Service that fronts talk to."""

    def __init__(
        self,
        device: str,
        models: Registry,
        keeper: Keeper,
        loans: Loans,
        machine: Machine,
        residence: Residence,
        calls: Calls,
        loading: Loading,
        metrics: Metrics,
        tokenizers: Tokenizers,
    ) -> None:
        self._device = device
        self._models = models
        self._keeper = keeper
        self._loans = loans
        self._machine = machine
        self._residence = residence
        self._calls = calls
        self._loading = loading
        self._attachments = Attachments(models, loading)
        self._metrics = metrics
        self._tokenizers = tokenizers
        self._lasting: set[asyncio.Task[Any]] = set()
        #: Whether the models that the server was started with are loaded or refused.
        self.started = False

    def invoke(self, request: m.Invoke, respond: Respond) -> None:
        """Queue or run ``request``; whatever is wrong is its answer."""
        self._calls.invoke(request, respond)

    def cancel(self, request_id: int, respond: Respond) -> None:
        """Drop a request whose caller is gone."""
        self._calls.cancel(request_id, respond)

    def gone(self, respond: Respond) -> None:
        """Drop everything of a front that died, and what a worker of the second door held."""
        self._calls.gone(respond)
        self._attachments.gone(respond)

    async def load(self, request: m.Load) -> m.Loaded:
        """Register a model and bring it up."""
        return await self._to_its_end(self._loading.load(request))

    async def attach(self, request: m.Attach, respond: Respond) -> m.Loaded:
        """Register a model for as long as the peer of ``respond`` is connected."""
        return await self._attachments.attach(request, respond)

    async def move(self, request: m.Move) -> m.Loaded:
        """Refuse: what lies where is decided here, not by fronts."""
        raise BadRequest("models are moved by the engine, which asks its host children for it")

    async def share(self, request: m.Share) -> m.Shared:
        """Refuse: it is asked of host children only."""
        raise BadRequest("what models share is found by the engine, which asks its host children for it")

    async def unload(self, request: m.Unload) -> m.Unloaded:
        """Drain a model, free its bytes, forget it."""
        return await self._to_its_end(self._loading.unload(request))

    async def _to_its_end(self, work: Coroutine[Any, Any, _Reply]) -> _Reply:
        """Await ``work``, which goes on when the front that asked for it dies: half a load would keep the name."""
        task = asyncio.get_running_loop().create_task(work)
        self._lasting.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        finally:
            del task  # its error knows this frame: a circle, which would keep what a failed load had in hand

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._lasting.discard(task)
        task.exception()  # told to who asked; if that one is gone, Loading has logged it

    async def list(self, request: m.List) -> m.Page:
        """Return the ready models, sorted by name."""
        models, token = self._models.page(request.limit, request.token)
        return m.Page(request.id, [m.Entry(model.name, model.shown) for model in models], token)

    async def describe(self, request: m.Describe) -> m.Description:
        """Return what callers may know of one model, once it is known what it shares."""
        await self._residence.joined(request.name)
        model = self._models.known(request.name)  # after the wait: it may be gone by then
        ledger = self._keeper.ledger
        there = model.name in ledger
        triton = model.manifest.triton if model.manifest is not None else None
        return m.Description(
            request.id,
            model.name,
            model.shown,
            SHOWN[model.life],
            (ledger.tier(model.name) if there else Tier.DISK).value,
            ledger.bytes(model.name) if there else 0,
            ledger.shared_bytes(model.name) if there else 0,
            model.reason,
            model.manifest.task if model.manifest is not None else "",
            model.kind,
            *_ports(triton),
            cache_bytes=self._loans.bytes(model.name),
            tokenizer_bytes=self._tokenizers.bytes(model.name),
        )

    async def ready(self, request: m.Ready) -> m.Status:
        """Return that the engine is up, and whether it is through with the models it was started with."""
        state = "draining" if self._calls.draining else "ready" if self.started else m.LOADING
        return m.Status(request.id, state, self._device, os.getpid())

    async def stats(self, request: m.Stats) -> m.Figures:
        """Return what is counted and what is where."""
        ledger = self._keeper.ledger
        rows = self._metrics.rows()
        rows += [
            ("berth_memory_bytes", {"tier": tier.value, "kind": kind}, float(number))
            for tier in ledger.tiers
            for kind, number in ledger.figures(tier)._asdict().items()
        ]
        for tier in ledger.tiers:
            shared, saved = ledger.account(tier).shared()
            rows.append(("berth_shared_bytes", {"tier": tier.value}, float(shared)))
            rows.append(("berth_saved_bytes", {"tier": tier.value}, float(saved)))
        rows.append(("berth_cache_bytes", {"tier": Tier.DEVICE.value}, float(self._loans.bytes())))
        rows.append(("berth_tokenizer_bytes", {"kind": "used"}, float(self._tokenizers.bytes())))
        rows.append(("berth_tokenizer_bytes", {"kind": "idle"}, float(self._tokenizers.idle_bytes)))
        rows += [
            ("berth_memory_gap_bytes", {"tier": tier.value}, float(gap)) for tier, gap in self._machine.gaps().items()
        ]
        tiers = {tier.value: 0 for tier in (*ledger.tiers, Tier.DISK)}
        for model in self._models.all():
            if model.name in ledger:
                tiers[ledger.tier(model.name).value] += 1
        rows += [("berth_models", {"tier": tier}, float(count)) for tier, count in tiers.items()]
        rows.append(("berth_promotions_total", {}, float(self._residence.promotions)))
        rows.append(("berth_demotions_total", {}, float(self._keeper.demotions)))
        rows.append(("berth_requests_in_flight", {}, float(len(self._calls))))
        return m.Figures(request.id, rows)

    def counts(self, counts: m.Counts) -> None:
        """Add what a front counted by itself."""
        for route, status, number in counts.requests:
            self._metrics.add("berth_http_requests_total", number, route=route, code=str(status))

    async def drain(self, request: m.Drain) -> m.Status:
        """Take no new work; return when nothing is in flight."""
        self._calls.draining = True
        while len(self._calls):
            await asyncio.sleep(0.01)
        return m.Status(request.id, "drained", self._device, os.getpid())


def _ports(triton: Triton | None) -> tuple[str, list[m.Port], list[m.Port]]:
    """Version, inputs and outputs of a Description; a model that batches takes any number of rows first."""
    if triton is None:
        return "", [], []
    rows = [-1] if triton.max_batch_size else []

    def ports(specs: list[TensorSpec]) -> list[m.Port]:
        """Return each tensor with its whole shape; -1 is any number."""
        return [m.Port(spec.name, spec.datatype, rows + spec.dims) for spec in specs]

    return triton.version, ports(triton.inputs), ports(triton.outputs)
