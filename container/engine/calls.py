"""Requests in flight: accepted, queued, run, answered; each exactly once, and in time.

Does not cover: which models there are (``engine/loading``), where their bytes lie (``engine/residence``).
"""

from __future__ import annotations

import asyncio
import bisect
import time

from container import log
from container.engine import lending
from container.engine.lifecycle import CALLABLE, Life, Residency
from container.engine.models import SINGLE, Model, Registry
from container.engine.residence import Residence
from container.errors import (
    Draining,
    Failure,
    Internal,
    ModelNotFound,
    NeedsOwnProcess,
    OutOfMemory,
    Quarantined,
    QueueFull,
    ServingError,
)
from container.memory.ledger import Ledger
from container.memory.loans import Loan, Loans
from container.metrics import Metrics
from container.model.ticket import Ticket
from container.payload import Payload
from container.settings import Settings
from container.wire import messages as m
from container.wire.api import Respond

_log = log.get(__name__)

#: Bytes of bodies that may wait in the engine, all models together.
QUEUE_BYTES = 512 << 20
#: A caller's wait while the model is still loading for the first time: its manifest is not read yet.
LOADING_S = 60.0
#: What the platform waits for the end of a streamed answer (contract.md 1.2).
STREAM_S = 480.0
_SWEEP_S = 0.1


class Calls:
    """All tickets of one engine."""

    def __init__(
        self, settings: Settings, models: Registry, ledger: Ledger, residence: Residence, loans: Loans, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._models = models
        self._ledger = ledger
        self._residence = residence
        self._loans = loans
        self._metrics = metrics
        self._tickets: dict[tuple[Respond, int], tuple[Ticket, Model]] = {}
        self._queued_bytes = 0
        self._feeding: set[asyncio.Task[None]] = set()
        self.draining = False
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep())

    def __len__(self) -> int:
        return len(self._tickets)

    def invoke(self, request: m.Invoke, respond: Respond) -> None:
        """Queue or run ``request``; whatever is wrong is its answer."""
        try:
            self._accept(request, respond)
        except ServingError as error:
            self._metrics.add("berth_invocations_total", 1, code=error.code, **self._named(request.model or SINGLE))
            respond(m.Answer(request.id, error.to_failure()))

    def _named(self, model: str) -> dict[str, str]:
        """The label of a model's figures, if it is wanted; "" for a name that nobody has registered."""
        known = self._models.get(model) is not None
        return {"model": model if known else ""} if self._settings.metrics_per_model else {}

    def _accept(self, request: m.Invoke, respond: Respond) -> None:
        model = self._models.get(request.model or SINGLE)
        if model is None or model.life not in CALLABLE:
            raise self._not_callable(request.model, model)
        if self.draining:
            raise Draining("the server is shutting down", retry_after_s=5.0)
        waiting = len(model.waiting) + model.in_flight
        if waiting >= self._settings.queue_length:
            raise QueueFull(
                f"{waiting} requests wait for model {model.name!r} already; try again",
                retry_after_s=model.pace.wait_s(waiting) or 1.0,
            )
        size = len(request.payload.body)
        if self._queued_bytes + size > QUEUE_BYTES:
            raise QueueFull("the bodies that wait take all the memory they may; try again", retry_after_s=1.0)
        now = time.monotonic()
        timeout_s = model.manifest.settings.timeout_s if model.manifest is not None else LOADING_S
        self._refuse_what_comes_too_late(model, waiting, min(request.deadline - now, timeout_s))
        model.pace.started(waiting, now)
        key = (respond, request.id)
        self._queued_bytes += size

        def settle(result: Payload | Failure) -> None:
            """Answer the caller, after all bookkeeping: whoever is answered may call again at once."""
            self._tickets.pop(key, None)
            ticket.part_ways()
            self._queued_bytes -= size
            code = result.code if isinstance(result, Failure) else "ok"
            named = self._named(model.name)
            self._metrics.add("berth_invocations_total", 1, code=code, **named)
            ended = time.monotonic()
            self._metrics.observe("berth_invocation_seconds", ended - now, **named)
            model.pace.answered(ended)
            respond(m.Answer(request.id, result))

        def part(piece: Payload) -> None:
            """Send a piece; from the first one on, an answer has the platform's longer time, if it does not stall."""
            ticket.deadline_s = min(time.monotonic() + timeout_s, now + STREAM_S)
            respond(m.Chunk(request.id, piece))

        ticket = Ticket(request.payload, settle, now, min(request.deadline, now + timeout_s))
        if request.stream:
            ticket.part = part
        self._tickets[key] = (ticket, model)
        if model.at_hand and not (model.waiting or model.stale) and model.life is Life.READY:
            self._submit(model, ticket)
        else:
            model.waiting.append(ticket)
            self.want(model)

    def _refuse_what_comes_too_late(self, model: Model, waiting: int, left_s: float) -> None:
        """Raise QueueFull if the turn of one more request would come when its caller has given up."""
        if model.pace.too_late(waiting, left_s):
            wait_s = model.pace.wait_s(waiting)
            raise QueueFull(
                f"model {model.name!r} would begin with this request in about {wait_s:.1f} s, "
                f"too late for the {left_s:.1f} s that it may take; try again",
                retry_after_s=wait_s,
            )

    def _not_callable(self, name: str, model: Model | None) -> ServingError:
        if model is not None and model.life is Life.QUARANTINED:
            return Quarantined(f"model {model.name!r} is out of service: {model.reason}; unload it and load it anew")
        if not name:
            return ModelNotFound(
                "no single model is loaded here: put one under the `model` folder, or call /models/{name}/invoke"
            )
        return self._models.missing(name)

    def _submit(self, model: Model, ticket: Ticket) -> None:
        self._residence.hold(model)
        model.in_flight += 1
        answer = ticket.settle

        def settle(result: Payload | Failure) -> None:
            """Count the request as done and answer it; one that ran out of memory may be kept for a second try."""
            if isinstance(result, Failure) and self._tries_again(model, ticket, result.code):
                return
            model.in_flight -= 1
            self._ledger.touch(model.name, time.monotonic())
            answer(result)
            self.settled(model)

        def give_back(ticket: Ticket) -> None:
            """Let ``ticket`` wait again: its model has to come up anew before it can be answered."""
            ticket.renew()
            ticket.repay()
            ticket.settle = answer
            model.in_flight -= 1
            bisect.insort(model.waiting, ticket, key=lambda each: each.arrived_s)
            asyncio.get_running_loop().call_soon(self._want_if_waiting, model)

        ticket.settle, ticket.give_back = settle, give_back
        self._hand(model, ticket)

    def _hand(self, model: Model, ticket: Ticket) -> None:
        assert model.runner is not None
        model.runner.submit(model.name, ticket)

    def _tries_again(self, model: Model, ticket: Ticket, code: str) -> bool:
        """Keep a request that failed for another try, with room made or in another process; False if it is over."""
        if code == NeedsOwnProcess.code and ticket.give_back is not None and ticket.may_repeat:
            self._residence.move_apart(model)
            ticket.give_back(ticket)
            self.settled(model)
            return True
        return code == OutOfMemory.code and self._starve(model, ticket)

    def _starve(self, model: Model, ticket: Ticket) -> bool:
        """A request ran out of memory: keep it for a second try with room made. False if it has had that."""
        if ticket.most or not ticket.may_repeat or model.residency is not Residency.DEVICE:
            return False
        ticket.renew()
        model.starved.append(ticket)
        if len(model.starved) == 1:
            task = asyncio.get_running_loop().create_task(self._feed(model))
            self._feeding.add(task)
            task.add_done_callback(self._feeding.discard)
        return True

    async def _feed(self, model: Model) -> None:
        """Sink what is idle, then try those that ran out of memory once more, in batches half as large."""
        await asyncio.sleep(0)  # the rest of the batch fails in the same turn of the loop
        await self._residence.make_room(model)
        tickets, model.starved = model.starved, []
        most = max(1, len(tickets) // 2)
        for ticket in tickets:
            ticket.most = most
            if ticket.dropped:
                continue
            if model.residency is Residency.DEVICE and not model.stale:
                self._hand(model, ticket)
            elif ticket.give_back is not None:
                ticket.give_back(ticket)
        self.settled(model)
        if model.waiting:
            self.want(model)

    def stale(self, name: str) -> None:
        """The files of ``name`` were changed under it: what waits is answered once it has come up anew."""
        model = self._models.get(name)
        if model is not None:
            model.stale = True
            asyncio.get_running_loop().call_soon(self._want_if_waiting, model)

    def _want_if_waiting(self, model: Model) -> None:
        if model.waiting:
            self.want(model)

    def settled(self, model: Model) -> None:
        """Nothing more may be in flight for ``model``: let it go if so."""
        if model.held and not model.in_flight and model.runner is not None and not model.runner.busy(model.name):
            self._residence.unhold(model)

    def want(self, model: Model) -> None:
        """See to it that ``model`` rises and what waits for it is run."""
        if model.life is not Life.READY and model.life is not Life.DRAINING:
            return  # the load, when it ends, looks at what waits
        self._ledger.queue(model.name, model.waiting[0].arrived_s)
        if model.rising is None:
            model.rising = asyncio.get_running_loop().create_task(self._raise_up(model))

    async def _raise_up(self, model: Model) -> None:
        """Bring ``model`` to the device for what waits; on failure all of that gets the reason."""
        try:
            while model.waiting:
                if model.residency is Residency.DEVICE and model.stale:
                    await self._residence.renew(model)
                elif model.at_hand:
                    self._run_waiting(model)
                    if model.waiting:
                        await self._lend(model)
                elif model.residency in (Residency.DISK, Residency.HOST):
                    await self._residence.rise(model, max(ticket.deadline_s for ticket in model.waiting))
                else:
                    await asyncio.sleep(0.001)  # sinking, or its process has just died: that ends by itself
        except ServingError as error:
            _log.warning("model %s does not come up: %s", model.name, error)
            self.fail_waiting(model, error)
        except BaseException:
            self.fail_waiting(model, Internal(Internal.TEXT))
            raise
        finally:
            model.rising = None
            if model.waiting:
                self.want(model)
            else:  # its callers may all have given up
                self._residence.unwanted(model)

    async def _lend(self, model: Model) -> None:
        """Get the first that waits for ``model`` the memory that its run lacked, and as many more as there is room for.

        The model is not held meanwhile: older requests of others may have its place.
        """
        first = model.waiting[0]
        self._ledger.queue(model.name, first.arrived_s)
        try:
            loan: Loan | None = await lending.wait(self._loans, model.name, first)
        except ServingError as error:
            model.waiting.remove(first)
            first.dropped = True
            first.settle(error.to_failure())
            return
        while loan is not None:
            if first not in model.waiting or not model.at_hand or model.stale:
                loan.end()  # its caller is gone, or the model has to come up again first
                return
            model.waiting.remove(first)
            first.loan, first.late = loan, None
            self._submit(model, first)
            if not model.waiting or not model.waiting[0].needs:
                return
            first = model.waiting[0]
            loan = await self._loans.take(model.name, first.needs, first.needs)

    def _run_waiting(self, model: Model) -> None:
        """Submit what waits, up to the first that has to be lent memory before."""
        self._ledger.queue(model.name, None)
        while model.waiting and not model.waiting[0].needs:
            ticket = model.waiting.popleft()
            if not ticket.dropped:
                self._submit(model, ticket)

    def fail_waiting(self, model: Model, error: ServingError) -> None:
        """Answer everything that waits for ``model`` with ``error``."""
        if model.name in self._ledger:
            self._ledger.queue(model.name, None)
        failure = error.to_failure()
        while model.waiting:
            ticket = model.waiting.popleft()
            if not ticket.dropped:
                ticket.dropped = True
                ticket.settle(failure)

    def cancel(self, request_id: int, respond: Respond) -> None:
        """Drop a request whose caller is gone; one that already runs ends for nothing."""
        found = self._tickets.get((respond, request_id))
        if found is not None:
            self._drop(found[0], found[1], respond, request_id)
            self._metrics.add("berth_invocations_total", 1, code="caller_gone", **self._named(found[1].name))

    def gone(self, respond: Respond) -> None:
        """Drop everything of a front that died."""
        for peer, request_id in [key for key in self._tickets if key[0] == respond]:
            self.cancel(request_id, peer)

    def _drop(self, ticket: Ticket, model: Model, respond: Respond, request_id: int) -> None:
        self._tickets.pop((respond, request_id), None)
        self._queued_bytes -= len(ticket.payload.body)
        if not ticket.dropped:
            ticket.drop()
            ticket.part_ways()
            if ticket in model.waiting:
                model.waiting.remove(ticket)
            else:
                model.in_flight -= 1
                self.settled(model)

    async def _sweep(self) -> None:
        """Answer in time what did not come in time; the work itself runs on."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = time.monotonic()
            late = [(key, *found) for key, found in self._tickets.items() if found[0].deadline_s <= now]
            for (respond, request_id), ticket, model in late:
                error = lending.told_late(model.name, ticket, model.waiting)
                self._drop(ticket, model, respond, request_id)
                self._metrics.add("berth_invocations_total", 1, code=error.code, **self._named(model.name))
                respond(m.Answer(request_id, error.to_failure()))
