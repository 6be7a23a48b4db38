"""The engine's socket for a process without an event loop: one connection, a few requests, their replies.

Whoever holds a Link holds its model: the engine unloads it when the last connection that attached it has ended. A
connection that the engine has closed (it was restarted) is opened again, and the model attached again, on the next
call; what was in flight fails with Restarting, nothing is sent twice.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from container.errors import Failure, Internal, Restarting, ServingError
from container.payload import Payload
from container.wire import frames
from container.wire import messages as m

_READ_BYTES = 1 << 18
_GONE = Restarting("the engine has just died and is being restarted; try again in a moment", retry_after_s=1.0)


class Attachment(NamedTuple):
    """A model to hold: its name and its folder."""

    name: str
    url: str


class Link:
    """One connection to the engine at ``path``; ``peer`` names this end in its books. For one thread."""

    def __init__(self, path: str, peer: str, held: Attachment | None = None) -> None:
        self._path = path
        self._peer = peer
        self._held = held
        self._ids = itertools.count(1)
        self._socket: socket.socket | None = None

    def connect(self) -> None:
        """Open the connection and attach the model. Raises ServingError: Restarting, or why it does not load."""
        try:
            fresh = socket.socket(socket.AF_UNIX)
            fresh.connect(self._path)
            fresh.sendall(frames.encode(m.Hello(self._peer)))
        except OSError as error:
            fresh.close()
            raise _GONE from error
        self._socket = fresh
        if self._held is not None:
            try:
                self._one(m.Attach(next(self._ids), *self._held))
            except ServingError:
                self.close()
                raise

    def close(self) -> None:
        """Hang up; the engine lets go of the model if nobody else holds it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def invoke(self, model: str, payloads: Sequence[Payload], deadline_s: float) -> list[Payload | Failure]:
        """Return one result for each payload, in order; they run together. deadline_s: CLOCK_MONOTONIC."""
        try:
            self._refresh()
        except ServingError as error:
            return [error.to_failure()] * len(payloads)
        requests = [m.Invoke(next(self._ids), model, payload, deadline_s) for payload in payloads]
        found: dict[int, Payload | Failure] = {}
        try:
            self._send(requests)
            for reply in self._replies():
                found[reply.id] = _result(reply)
                if len(found) == len(requests):
                    break
        except OSError:
            self.close()
        gone = _GONE.to_failure()
        return [found.get(request.id, gone) for request in requests]

    def drain(self) -> None:
        """Return when the engine has finished what it has; it takes nothing new from now on. Raises ServingError."""
        self._refresh()
        self._one(m.Drain(next(self._ids)))

    def _one(self, request: m.Attach | m.Drain) -> m.Reply:
        """Return the reply to ``request``. Raises ServingError."""
        try:
            self._send([request])
            reply = next(self._replies())
        except (OSError, StopIteration) as error:
            self.close()
            raise _GONE from error
        if isinstance(reply, m.Failed):
            raise ServingError.from_failure(reply.failure)
        return reply

    def _refresh(self) -> None:
        """Connect if there is no connection, or if the engine has closed it since the last call."""
        if self._socket is not None:
            try:
                if self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"":
                    self.close()
            except BlockingIOError:
                return  # nothing to read: it is open
            except OSError:
                self.close()
        if self._socket is None:
            self.connect()

    def _send(self, requests: Sequence[m.Request]) -> None:
        assert self._socket is not None
        for request in requests:
            self._socket.sendall(frames.encode(request))

    def _replies(self) -> Iterator[m.Reply]:
        """Yield what comes; ends by OSError when the engine hangs up."""
        assert self._socket is not None
        reader = frames.FrameReader(frames.REPLIES)
        while data := self._socket.recv(_READ_BYTES):
            yield from reader.feed(data)
        raise ConnectionResetError("the engine hung up")


def _result(reply: m.Reply) -> Payload | Failure:
    if isinstance(reply, m.Answer):
        return reply.result
    return reply.failure if isinstance(reply, m.Failed) else Internal(Internal.TEXT).to_failure()
