"""Queues of models that can run now, and the one place that gives them lanes.

The same dispatcher serves the engine (our own handlers) and a host child (authors' code). It lives on one event loop:
only ``lanes`` are threads. Does not cover: names, memory, who may be called (``engine/engine``).
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from container.errors import Restarting
from container.handler import Claim, Handler, Parts
from container.model import pipeline, queues
from container.model.lanes import Job, Lanes
from container.model.pipeline import Results
from container.model.ticket import Loan, Ticket

#: A model whose last QUICK_RUNS batches all stayed under QUICK_S runs on the event loop itself: handing a no-op to
#: another thread and back costs more than the no-op (measured: 146 against 67 µs a call). One slow batch ends it.
QUICK_S = 0.0005
QUICK_RUNS = 100
#: What a request is thought to take while none of its model has run.
UNKNOWN_S = 0.01
#: A batch may take this much longer than the time its callers wait, so that one they never saw late kills nothing.
GRACE_S = 0.5
#: Units of ``Handler.size`` in one run; tokens for texts. About what keeps two cores busy without hurting the tail.
BUDGET = 4096


@dataclass(slots=True)
class _Station:
    """A model that can run: its handler and what waits for it."""

    name: str
    handler: Handler
    max_items: int
    max_delay_s: float
    timeout_s: float
    queue: deque[Ticket] = field(default_factory=deque)
    running: int = 0
    #: Expected seconds for one request, smoothed over the last batches; None = none has run yet.
    item_s: float | None = None
    #: Batches in a row that were quick.
    quick_runs: int = 0
    #: Whether what the handler reads is still what it was; asked before a batch and before its results are given.
    is_fresh: Callable[[], bool] | None = None
    stale: bool = False

    def expected_s(self, count: int) -> float:
        """Return the seconds that ``count`` requests will probably take."""
        return count * (UNKNOWN_S if self.item_s is None else self.item_s)

    def learn(self, item_s: float) -> None:
        """Take note of what a request took: the first time for good, then smoothed."""
        self.item_s = item_s if self.item_s is None else self.item_s + 0.2 * (item_s - self.item_s)


class Dispatcher:
    """Gives waiting models their turn on the lanes."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._stations: dict[str, _Station] = {}
        self._waiting: dict[str, _Station] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._pumping = False
        #: Called with a model's name when nothing of it waits or runs any more.
        self.on_idle: Callable[[str], None] = lambda name: None
        #: Called with a model's name when it is not fresh any more; its tickets have been given back, or will be.
        self.on_stale: Callable[[str], None] = lambda name: None
        #: Asked for (model, least, most) bytes beside its weights: a loan of at least ``least``, None = not now. It
        #: does not wait for others' work. Not set: nobody counts, and every claim is granted.
        self.lend: Callable[[str, int, int], Awaitable[Loan | None]] | None = None
        self._lending: set[asyncio.Task[None]] = set()
        lanes.on_free = self.pump

    def open(
        self,
        name: str,
        handler: Handler,
        max_items: int = 32,
        max_delay_ms: int = 0,
        timeout_s: float = 50.0,
        is_fresh: Callable[[], bool] | None = None,
        item_s: float | None = None,
    ) -> None:
        """Accept requests for ``name``; a batch that runs for longer than ``timeout_s`` counts as hung.

        is_fresh: whether the model's files are those that it was loaded from; a few microseconds. item_s: what
        ``close`` returned when it was here before.
        """
        station = _Station(name, handler, max_items, max_delay_ms / 1000, timeout_s)
        station.is_fresh, station.item_s = is_fresh, item_s
        self._stations[name] = station

    def close(self, name: str) -> float | None:
        """Accept no more requests for ``name``; the caller has made sure that none waits or runs.

        Returns the seconds that one of its requests takes, None if none has run.
        """
        self._waiting.pop(name, None)
        station = self._stations.pop(name, None)
        return station.item_s if station is not None else None

    def submit(self, name: str, ticket: Ticket) -> None:
        """Queue ``ticket``; it starts once the loop has taken what else has arrived, so that a burst is one batch."""
        station = self._stations[name]
        if ticket.most:
            station.max_items = min(station.max_items, ticket.most)
        station.queue.append(ticket)
        self._waiting[name] = station
        if not self._pumping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self.pump)

    def await_lull(self) -> None:
        """See Lanes."""
        self._lanes.await_lull()

    @property
    def computing(self) -> bool:
        """Whether any lane is at work."""
        return self._lanes.busy > 0

    def busy(self, name: str) -> bool:
        """Return whether anything of ``name`` waits or runs."""
        station = self._stations.get(name)
        return station is not None and bool(station.running or station.queue)

    def pump(self) -> None:
        """Start whatever can start. Paused jobs take turns with new batches."""
        self._pumping = False
        while self._lanes.free:
            station = self._next()
            if station is not None and (self._lanes.gave_way or not self._lanes.paused):
                self._start(station)
            elif not self._lanes.resume():
                break
        self._lanes.contended = any(self._may_start(station) for station in self._waiting.values())

    def _next(self) -> _Station | None:
        if len(self._waiting) == 1:  # by far the commonest case; nothing to weigh
            (station,) = self._waiting.values()
            return station if self._may_start(station) else None
        now = time.monotonic()
        name = queues.next_model(
            queues.Candidate(
                station.name,
                len(station.queue),
                now - station.queue[0].arrived_s,
                station.expected_s(min(len(station.queue), station.max_items)),
            )
            for station in self._waiting.values()
            if self._may_start(station)
        )
        return self._stations[name] if name is not None else None

    def _may_start(self, station: _Station) -> bool:
        if not station.queue or (station.running and not station.handler.reentrant):
            return False
        if station.max_delay_s and len(station.queue) < station.max_items:
            wait_s = station.queue[0].arrived_s + station.max_delay_s - time.monotonic()
            if wait_s > 0:
                self._wake_in(wait_s)
                return False
        return True

    def _wake_in(self, wait_s: float) -> None:
        """Look again when the first batch that waits for company has waited long enough."""
        loop = asyncio.get_running_loop()
        if self._alarm is None or self._alarm.when() > loop.time() + wait_s:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = loop.call_later(wait_s, self._awake)

    def _awake(self) -> None:
        self._alarm = None  # it may ring a millisecond early, and must be set again then
        self.pump()

    def _start(self, station: _Station) -> None:
        if self._gone_stale(station):
            return
        here = station.quick_runs >= QUICK_RUNS
        tickets = self._take(station, 1 if here else self._lanes.free)
        if not tickets:
            self._settle_idle(station)
            return
        station.running += 1

        def on_results(results: Results) -> None:
            """Settle those whose result has come; a result from files that changed meanwhile is not one."""
            if self._gone_stale(station):  # computed from who knows what
                self._give_back([tickets[index] for index, _ in results])
                return
            for index, result in results:
                ticket = tickets[index]
                if not ticket.dropped:
                    ticket.end(result)

        def on_parts(parts: Parts) -> None:
            """Hand pieces of answers on."""
            if self._gone_stale(station):
                return
            for index, piece in parts.items():
                if not tickets[index].dropped:
                    tickets[index].begin(piece)

        def on_drop() -> None:
            """Note that one caller less waits for the job."""
            job.unwanted += 1

        def on_claim(job: Job, claim: Claim) -> None:
            """See to the memory that the job stands still for."""
            task = asyncio.get_running_loop().create_task(self._grant(station, tickets, job, loans, claim))
            self._lending.add(task)
            task.add_done_callback(self._lending.discard)

        def on_done(busy_s: float) -> None:
            """Count the batch and learn from its time."""
            for loan in loans:
                loan.end()
            station.running -= 1
            station.learn(busy_s / len(tickets))
            station.quick_runs = station.quick_runs + 1 if busy_s < QUICK_S else 0
            tickets.clear()  # each knows the job by its on_drop: a circle, which would keep their payloads for long
            self._settle_idle(station)

        loans = [ticket.loan for ticket in tickets if ticket.loan is not None]
        payloads = [ticket.payload for ticket in tickets]
        steps = pipeline.answer(station.handler, payloads, BUDGET, station.max_items)
        job = Job(station.name, steps, len(tickets), on_results, on_done, station.timeout_s + GRACE_S, on_parts)
        job.expected_s = station.expected_s(len(tickets))
        if self.lend is not None:
            job.on_claim = on_claim
        for ticket in tickets:
            ticket.on_drop, ticket.loan = on_drop, None
        self._lanes.start(job, here=here)

    def _take(self, station: _Station, lanes: int) -> list[Ticket]:
        """Take the next batch from the queue, to be divided among ``lanes``; [] if nobody of it waits any more."""
        waiting = station.queue
        size = queues.next_batch(len(waiting), station.max_items, lanes, station.handler.reentrant)
        lent = waiting[0].loan is not None  # what has its bytes does not share a run with what has to claim them yet
        size = next((at for at in range(size) if (waiting[at].loan is not None) != lent), size)
        tickets = [ticket for ticket in (waiting.popleft() for _ in range(size)) if not ticket.dropped]
        if not waiting:
            self._waiting.pop(station.name, None)
        return tickets

    async def _grant(self, station: _Station, tickets: list[Ticket], job: Job, loans: list[Loan], claim: Claim) -> None:
        """Let a run have what it claims, or as much as there is; if that is too little, its requests wait elsewhere."""
        assert self.lend is not None
        have = sum(loan.bytes for loan in loans)
        if have < claim.most and job.wanted:
            more = await self.lend(station.name, max(0, claim.least - have), claim.most - have)
            if more is not None:
                loans.append(more)
                have += more.bytes
        if have >= claim.least and job.wanted:
            claim.granted = min(have, claim.most)
            for index, ticket in enumerate(tickets):
                ticket.lacks = functools.partial(claim.lacks, index)
            self._lanes.go_on(job)
            return
        job.steps.close()  # type: ignore[attr-defined]
        for ticket in tickets:
            ticket.needs = claim.least
        self._give_back(tickets)
        job.on_done(job.busy_s)
        self.pump()

    def _gone_stale(self, station: _Station) -> bool:
        """Return whether the files under the model are others now; then nothing of it starts any more."""
        if not station.stale:
            if station.is_fresh is None or station.is_fresh():
                return False
            station.stale = True
            self.on_stale(station.name)
        self._waiting.pop(station.name, None)
        tickets = list(station.queue)
        station.queue.clear()
        self._give_back(tickets)
        self._settle_idle(station)
        return True

    def _give_back(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            if ticket.dropped:
                continue
            if ticket.give_back is not None and ticket.may_repeat:
                ticket.give_back(ticket)
            else:
                changed = Restarting("the model's files were changed while it answered; ask again", retry_after_s=1.0)
                ticket.dropped = True
                ticket.settle(changed.to_failure())

    def _settle_idle(self, station: _Station) -> None:
        if not station.queue and not station.running:
            self.on_idle(station.name)
