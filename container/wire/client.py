"""The other end of a Service's socket: the front's view of the engine, the engine's view of a host child.

Two connections, one for frames over ``frames.BULK_BYTES``. When the peer dies everything in flight fails with
Restarting and the client connects again by itself; nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

import msgspec

from container import log
from container.errors import Failure, Internal, Restarting, ServingError
from container.payload import Payload
from container.wire import frames
from container.wire import messages as m
from container.wire.outbox import Outbox
from container.wire.stream import Stream

_log = log.get(__name__)
_RECONNECT_S = 0.02
#: What everything in flight fails with when the peer is lost; this very object, so that it can be told from others.
GONE = Restarting(
    "the process that runs the models has just died and is being restarted; try again in a moment", retry_after_s=1.0
).to_failure()


def _failure_of(reply: m.Reply) -> Failure:
    """Return why there is no answer in ``reply``."""
    if isinstance(reply, m.Failed):
        return reply.failure
    if isinstance(reply, m.Answer) and isinstance(reply.result, Failure):
        return reply.result
    _log.error("a %s came where an Answer was due", type(reply).__name__)
    return Internal(Internal.TEXT).to_failure()


class _Link(Outbox):
    """One of the two connections."""

    def __init__(self, on_reply: Callable[[m.Reply], None], on_lost: Callable[[], None]) -> None:
        super().__init__()
        self._on_reply = on_reply
        self._on_lost = on_lost
        self._reader = frames.FrameReader(frames.REPLIES)

    def data_received(self, data: bytes) -> None:
        """Hand each whole reply on; bytes that are no frame end the connection."""
        try:
            for reply in self._reader.feed(data):
                self._on_reply(reply)
        except frames.FrameError as error:
            _log.error("closing the connection to the engine: %s", error)
            if self.transport is not None:
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the client that its engine is gone."""
        super().connection_lost(exc)
        self._on_lost()


class Pending(asyncio.Future[m.Reply]):
    """A reply that is awaited; cancelling it tells the other side that nobody waits any more."""

    def __init__(self, abandon: Callable[[], None]) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._abandon = abandon
        #: The pieces, when it is a Chunk that came first.
        self.stream: Stream | None = None

    def cancel(self, msg: object | None = None) -> bool:
        """Cancel, and send Cancel to the other side."""
        cancelled = super().cancel(msg)
        if cancelled:
            self._abandon()
        return cancelled

    def resolve(self, reply: m.Reply) -> None:
        """Set the reply, unless the awaiting side has given up."""
        if self.stream is not None:
            self.stream.feed(reply)
        elif not self.done():
            if isinstance(reply, m.Chunk):
                self.stream = Stream(reply.part, self._abandon)
            self.set_result(reply)


class Client:
    """A Service at the other end of ``socket_path``; lives on one event loop."""

    def __init__(self, socket_path: str, name: str) -> None:
        self._path = socket_path
        self._name = name
        self._links: list[_Link] = []
        self._pending: dict[int, Callable[[m.Reply], None]] = {}
        self._ids = itertools.count(1)
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False
        self._generation = 0
        self.connected = False
        #: CLOCK_MONOTONIC seconds at which the peer was lost; None while connected or never connected yet.
        self.lost_at: float | None = None

    async def connect(self) -> None:
        """Return once connected; from then on the client reconnects by itself after every loss."""
        self._start_connecting()
        if self._connecting is not None:
            await self._connecting

    def close(self) -> None:
        """Hang up and stay away; whatever is in flight fails with Restarting."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        for link in self._links:
            link.abort()
        self._fail_all()

    async def invoke(self, model: str, payload: Payload, deadline: float) -> Payload:
        """Return the answer of ``model``. Raises the ServingError of its Failure."""
        reply = await self._future(m.Invoke(next(self._ids), model, payload, deadline))
        if isinstance(reply, m.Answer) and isinstance(reply.result, Payload):
            return reply.result
        raise ServingError.from_failure(_failure_of(reply))

    async def ask(self, model: str, payload: Payload, deadline: float) -> Payload | Stream:
        """Return the answer of ``model``, or its pieces if it comes so. Raises the ServingError of its Failure."""
        pending = self._future(m.Invoke(next(self._ids), model, payload, deadline, True))
        try:
            reply = await pending
        except asyncio.CancelledError:
            if pending.stream is not None:  # it came in the very moment of the cancellation
                pending.stream.close()
            raise
        if isinstance(reply, m.Answer) and isinstance(reply.result, Payload):
            return reply.result
        if pending.stream is not None:
            return pending.stream
        raise ServingError.from_failure(_failure_of(reply))

    async def call(self, request: m.Request) -> m.Reply:
        """Return the reply to any request with an id; the client sets the id. Raises ServingError."""
        reply = await self._future(msgspec.structs.replace(request, id=next(self._ids)))
        if isinstance(reply, m.Failed):
            raise ServingError.from_failure(reply.failure)
        return reply

    def forward(
        self,
        model: str,
        payload: Payload,
        deadline: float,
        on_result: Callable[[Payload | Failure], None],
        on_part: Callable[[Payload], None] | None = None,
        most: int = 0,
    ) -> Callable[[], None]:
        """Invoke without a future: ``on_result`` is called once, also when the peer dies; returns what cancels it.

        on_part: called before that with pieces of the answer, if it comes in pieces. most: see Invoke.
        """
        request_id = next(self._ids)

        def resolve(reply: m.Reply) -> None:
            """Hand on a piece of the answer, or its end."""
            if on_part is not None and isinstance(reply, m.Chunk):
                on_part(reply.part)
            else:
                on_result(reply.result if isinstance(reply, m.Answer) else _failure_of(reply))

        self._send(m.Invoke(request_id, model, payload, deadline, on_part is not None, most), request_id, resolve)
        return lambda: self._abandon(request_id)

    def counts(self, counts: m.Counts) -> None:
        """Send ``counts``; lost when the peer is."""
        if self.connected:
            self._write(counts)

    def _future(self, request: m.Request) -> Pending:
        request_id: int = request.id  # type: ignore[union-attr]
        pending = Pending(lambda: self._abandon(request_id))
        self._send(request, request_id, pending.resolve)
        return pending

    def _send(self, request: m.Request, request_id: int, resolve: Callable[[m.Reply], None]) -> None:
        if self.connected:
            self._pending[request_id] = resolve
            self._write(request)
        else:
            resolve(m.Failed(request_id, GONE))

    def _write(self, request: m.Request) -> None:
        frame = frames.encode(request)
        self._links[len(frame) > frames.BULK_BYTES].put(frame)

    def _abandon(self, request_id: int) -> None:
        if self._pending.pop(request_id, None) is not None and self.connected:
            self._write(m.Cancel(request_id))

    def _on_reply(self, reply: m.Reply) -> None:
        find = self._pending.get if type(reply) is m.Chunk else self._pending.pop  # after a Chunk more comes
        resolve = find(reply.id, None)
        if resolve is not None:
            resolve(reply)

    def _on_lost(self, generation: int) -> None:
        if generation != self._generation or not self.connected:
            return
        self.connected = False
        self.lost_at = time.monotonic()
        for link in self._links:
            link.abort()
        self._fail_all()
        self._start_connecting()

    def _fail_all(self) -> None:
        pending, self._pending = self._pending, {}
        for request_id, resolve in pending.items():
            resolve(m.Failed(request_id, GONE))

    def _start_connecting(self) -> None:
        if not self._closed and (self._connecting is None or self._connecting.done()):
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        """Try until both connections stand: the other side may still be starting."""
        while True:
            self._generation += 1
            try:
                self._links = [await self._open(bulk=False), await self._open(bulk=True)]
            except OSError:
                await asyncio.sleep(_RECONNECT_S)
                continue
            if all(link.transport is not None for link in self._links):
                self.connected, self.lost_at = True, None
                return

    async def _open(self, *, bulk: bool) -> _Link:
        generation = self._generation
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(
            lambda: _Link(self._on_reply, lambda: self._on_lost(generation)), self._path
        )
        link.put(frames.encode(m.Hello(self._name, bulk)))
        return link
