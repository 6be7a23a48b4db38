"""Queues of models that can run now, and the one place that gives them lanes.

The same dispatcher serves the engine (our own handlers) and a host child (authors' code). It lives on one event loop:
only ``lanes`` are threads. Does not cover: names, memory, who may be called (``engine/engine``).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from container.errors import Failure, Restarting
from container.handler import Handler, Parts
from container.model import pipeline, queues
from container.model.lanes import Job, Lanes
from container.model.pipeline import Results
from container.payload import Payload

#: A model whose last QUICK_RUNS batches all stayed under QUICK_S runs on the event loop itself: handing a no-op to
#: another thread and back costs more than the no-op (measured: 146 against 67 µs a call). One slow batch ends it.
QUICK_S = 0.0005
QUICK_RUNS = 100
#: A batch may take this much longer than the time its callers wait, so that one they never saw late kills nothing.
GRACE_S = 0.5
#: Units of ``Handler.size`` in one run; tokens for texts. About what keeps two cores busy without hurting the tail.
BUDGET = 4096


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way; ``settle`` is called exactly once unless the ticket is dropped or given back first.

    Times are seconds of CLOCK_MONOTONIC. ``on_drop`` tells whoever has the work that nobody waits for it any more.
    part: takes pieces of the answer before ``settle`` is called; None = they are gathered into one answer.
    give_back: takes the ticket when its model cannot answer it as it is now; None = it cannot be given back. most: no
    more than this many in a batch, now and for the model's later requests; 0 = as the manifest says.
    """

    payload: Payload
    settle: Callable[[Payload | Failure], None]
    arrived_s: float
    deadline_s: float = float("inf")
    on_drop: Callable[[], None] | None = None
    dropped: bool = False
    part: Callable[[Payload], None] | None = None
    give_back: Callable[[Ticket], None] | None = None
    most: int = 0
    _pieces: list[Payload] | None = None

    def begin(self, piece: Payload) -> None:
        """Hand a piece of the answer on, or keep it for the whole."""
        if self._pieces is None:
            self._pieces = []
        if self.part is None:
            self._pieces.append(piece)
        else:
            self.part(piece)

    def end(self, result: Payload | Failure) -> None:
        """Settle with ``result``, or for an answer in pieces with what is left of it."""
        self.dropped = True
        if self._pieces is not None and isinstance(result, Payload):
            if self.part is not None:  # as a piece, for a large Answer could overtake the pieces before it
                self.part(result)
                result = msgspec.structs.replace(result, body=b"")
            elif self._pieces:
                body = b"".join([*(piece.body for piece in self._pieces), result.body])
                result = msgspec.structs.replace(self._pieces[0], body=body)
        self.settle(result)

    @property
    def may_repeat(self) -> bool:
        """Whether the work can be done once more: nothing of the answer has gone out."""
        return self.part is None or self._pieces is None

    def renew(self) -> None:
        """Be as before the work began."""
        self.dropped, self.on_drop, self._pieces = False, None, None

    def drop(self) -> None:
        """Forget the request; what already runs of it runs to its end for nothing."""
        self.dropped = True
        if self.on_drop is not None:
            self.on_drop()


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
    #: Expected seconds for one request, smoothed over the last batches.
    item_s: float = 0.01
    #: Batches in a row that were quick.
    quick_runs: int = 0
    #: Whether what the handler reads is still what it was; asked before a batch and before its results are given.
    is_fresh: Callable[[], bool] | None = None
    stale: bool = False


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
        lanes.on_free = self.pump

    def open(
        self,
        name: str,
        handler: Handler,
        max_items: int = 32,
        max_delay_ms: int = 0,
        timeout_s: float = 50.0,
        is_fresh: Callable[[], bool] | None = None,
    ) -> None:
        """Accept requests for ``name``; a batch that runs for longer than ``timeout_s`` counts as hung.

        is_fresh: whether the model's files are those that it was loaded from; a few microseconds.
        """
        station = _Station(name, handler, max_items, max_delay_ms / 1000, timeout_s)
        station.is_fresh = is_fresh
        self._stations[name] = station

    def close(self, name: str) -> None:
        """Accept no more requests for ``name``; the caller has made sure that none waits or runs."""
        self._stations.pop(name, None)
        self._waiting.pop(name, None)

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
                station.item_s * min(len(station.queue), station.max_items),
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
        waiting = station.queue
        size = queues.next_batch(len(waiting), station.max_items, self._lanes.free, station.handler.reentrant)
        tickets = [ticket for ticket in (waiting.popleft() for _ in range(size)) if not ticket.dropped]
        if not waiting:
            self._waiting.pop(station.name, None)
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

        def on_done(busy_s: float) -> None:
            """Count the batch and learn from its time."""
            station.running -= 1
            station.item_s += 0.2 * (busy_s / len(tickets) - station.item_s)
            station.quick_runs = station.quick_runs + 1 if busy_s < QUICK_S else 0
            self._settle_idle(station)

        payloads = [ticket.payload for ticket in tickets]
        steps = pipeline.answer(station.handler, payloads, BUDGET, station.max_items)
        job = Job(station.name, steps, len(tickets), on_results, on_done, station.timeout_s + GRACE_S, on_parts)
        for ticket in tickets:
            ticket.on_drop = on_drop
        self._lanes.start(job, here=station.quick_runs >= QUICK_RUNS)

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
