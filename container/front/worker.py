"""gunicorn's asgi worker and protocol, with what silent and hasty clients need.

Seven changes to ``gunicorn.asgi.protocol.ASGIProtocol`` (27.0.1): ordinary invocations go the short way (``express``)
past parser and ASGI; a connection that sends no request is closed, so is one that sends half of one, and one that takes
nothing of its answer; there is a cap on connections (over it, one that is idle makes way for the new one); a refusal
sent before the body was read reaches the client (the rest of the body is read and thrown away for a moment: closing at
once would reset the connection under the answer); and errors of the HTTP parser have our JSON shape. Two to the worker:
on SIGTERM idle connections are closed, so that it does not wait for them; and the kernel's queue of new connections has
the length that is set, not the 100 of asyncio, over which a crowd of clients waits seconds to be let in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from gunicorn.asgi import protocol as gunicorn
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.glogging import Logger
from gunicorn.workers import gasgi

from container import log
from container.front.errors import Answer
from container.front.express import Express, Ride, Send

#: A new connection must have sent the headers of its first request by then.
FIRST_REQUEST_S = 20.0
#: From the first byte of a request, its headers must be there within this long.
HEADERS_S = 10.0
#: After a refusal that came before the body was read, this long more of it is read and thrown away.
LINGER_S = 2.0
#: After closing, this long a client may take for what was written to it.
FLUSH_S = 10.0
#: A client that takes nothing of an answer for this long is gone. The kernel asks for more only when about a third of
#: its send buffer (4 MB) is free, so this also means less than some 20 KB/s.
STALL_S = 60.0

#: A client may send this much of further requests while one is under way on the short way.
EARLY_BYTES = 256 << 10
#: An answer of this size is not copied to stand behind its headers.
_LARGE_BYTES = 64 << 10

_TYPES = {
    400: "BadRequestException",
    414: "BadRequestException",
    431: "BadRequestException",
    501: "BadRequestException",
    503: "ServiceUnavailableException",
}


class Protocol(ASGIProtocol):  # type: ignore[misc]
    """One connection."""

    _refused = False
    _lingering = False
    _headers_begun = False
    _made_way = False
    #: The request that is under way on the short way, and what came after it.
    _ride: Ride | None = None
    _early = b""
    #: Ends the connection if its client does not; goes with it.
    _aborting: asyncio.TimerHandle | None = None
    #: When the short way was last used; it sets no timers.
    _rode_at_s = float("-inf")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the connection; over the cap an idle one makes way, or it is answered 503 and closed."""
        self._express: Express | None = getattr(self.worker.asgi, "express", None)
        super().connection_made(transport)
        if self.worker.nr_conns > self.cfg.worker_connections:
            self._make_way()
        self.worker.connections[self] = None
        if self.worker.nr_conns > self.cfg.worker_connections + self.worker.leaving:
            self._send_error_response(503, "too many connections; try again in a moment", (("Retry-After", "1"),))
            self._close_transport()
        else:
            self._keepalive_handle = self.worker.loop.call_later(FIRST_REQUEST_S, self._keepalive_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.worker.connections.pop(self, None)
        ride, self._ride = self._ride, None
        if ride is not None:
            ride.hang_up()
        if self._made_way:
            self._made_way = False
            self.worker.leaving -= 1
        if self._aborting is not None:
            self._aborting.cancel()
            self._aborting = None
        super().connection_lost(exc)
        if self._task is None or self._task.done():
            self._let_go()
        else:
            self._task.add_done_callback(self._let_go)

    def _let_go(self, task: asyncio.Task[None] | None = None) -> None:
        """Part with what refers back to this: a circle, and a body of megabytes in it, would stay for long."""
        self._callback_parser: Any = None
        self._body_receiver: Any = None

    def data_received(self, data: bytes) -> None:
        """Take what came in; after a refusal it is thrown away."""
        if self._lingering:
            return
        if self._ride is not None:
            self._early += data
            if len(self._early) > EARLY_BYTES:
                self._pause_reading()
            return
        if self._express is not None and self._between_requests() and (ride := self._express.take(self, data)):
            self._ride, self._awaiting_request = ride, False
            self.req_count += 1
            ride.start()
            return
        super().data_received(data)
        if self._awaiting_request and not (self._headers_begun or self._request_ready.is_set()):
            self._headers_begun = True
            self._cancel_keepalive_timer()
            self._keepalive_handle = self.worker.loop.call_later(HEADERS_S, self._keepalive_timeout)

    def _between_requests(self) -> bool:
        """Say whether the next byte begins a request, and nothing is left to be done for the one before it."""
        parser = self._callback_parser
        return (
            self._awaiting_request
            and not (self._closed or self._finishing_calls or self._flow_control.write_paused)
            and parser._state == "request_line"
            and not parser._buffer
        )

    def answer(self, answer: Answer) -> None:
        """Send the answer of the ride; the connection is free for the next request."""
        self._ride = None
        if self._closed:
            return
        last = not self.worker.alive
        head, body = _head(answer, last=last), answer.body
        if len(body) < _LARGE_BYTES:
            self._safe_write(head + body)
        else:
            self.transport.writelines((head, body))
        self._awaiting_request = True
        if last:
            super()._keepalive_timeout()
            return
        self._rode_at_s = self.worker.loop.time()
        if self._early:
            early, self._early = self._early, b""
            self._resume_reading()
            self.data_received(early)

    def hand_over(self, application: Callable[[Send], Awaitable[None]]) -> None:
        """Let gunicorn parse the request of the ride after all, and ``application`` send the answer."""

        async def instead(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Send) -> None:
            """Stand in for the application, once."""
            self.app, self._ride = self.worker.asgi, None
            await receive()
            await application(send)

        assert self._ride is not None
        self.app = instead
        early, self._early = self._early, b""
        self._resume_reading()
        super().data_received(self._ride.raw + early)

    def _keepalive_timeout(self) -> None:
        """Close the connection, unless the short way, of which gunicorn knows nothing, was used more lately."""
        loop = self.worker.loop
        rode_at_s = self._rode_at_s if self._ride is None else loop.time()
        left_s = rode_at_s + self._keepalive - loop.time()
        if left_s > 0 and not self._headers_begun:
            self._keepalive_handle = loop.call_later(left_s, self._keepalive_timeout)
        else:
            super()._keepalive_timeout()

    def _arm_keepalive_timer(self) -> None:
        self._headers_begun = False
        super()._arm_keepalive_timer()

    def _make_way(self) -> None:
        """Close the oldest connection that has never asked, else the oldest that is idle."""
        idle = [each for each in self.worker.connections if each._awaiting_request and not each._closed]
        if idle:
            oldest = next((each for each in idle if each.req_count <= 1), idle[0])
            oldest._made_way = True
            self.worker.leaving += 1
            oldest.close_if_idle()

    def pause_writing(self) -> None:
        """Wait for the client to read, as long as it reads at all."""
        super().pause_writing()
        self.worker.loop.call_later(STALL_S, self._check_progress, self.transport.get_write_buffer_size())

    def _check_progress(self, before_bytes: int) -> None:
        if self._conn_lost_handled or not self._flow_control.write_paused:
            return
        waiting_bytes = self.transport.get_write_buffer_size()
        if waiting_bytes >= before_bytes:
            self.transport.abort()
        else:
            self.worker.loop.call_later(STALL_S, self._check_progress, waiting_bytes)

    def close_if_idle(self) -> None:
        """Close the connection if no request is under way on it."""
        if self._awaiting_request and not self._closed:
            super()._keepalive_timeout()

    def _will_close(self, request: Any, response_requires_close: bool) -> bool:
        """Announce the close that follows when a request was answered before its body was there."""
        receiver = self._body_receiver
        unread = receiver is not None and not receiver._complete
        return unread or super()._will_close(request, response_requires_close)

    def _close_transport(self) -> None:
        if self._closed or self.transport is None:
            return
        receiver = self._body_receiver
        if self._refused or (receiver is not None and not receiver._complete):
            self._linger()
            return
        super()._close_transport()
        self._abort_in(FLUSH_S)

    def _linger(self) -> None:
        """End our side, then throw away what still comes until the client ends its side or LINGER_S is over."""
        self._closed = self._lingering = True
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._resume_reading()
        self._abort_in(LINGER_S)

    def _abort_in(self, seconds: float) -> None:
        if self._aborting is not None:
            self._aborting.cancel()
        self._aborting = self.worker.loop.call_later(seconds, self.transport.abort)

    def _send_error_response(self, status: int, message: str, extra_headers: Any = ()) -> None:
        """Answer what the HTTP parser refused, in the shape of every other error."""
        self._refused = True
        reason = "server.queue_full" if status == 503 else "server.internal" if status == 500 else "request.malformed"
        kind = _TYPES.get(status, "InternalServerException")
        body = msgspec.json.encode({"code": status, "type": kind, "message": message[:2048], "reason": reason})
        headers = "".join(f"{name}: {value}\r\n" for name, value in extra_headers)
        self._safe_write(
            f"HTTP/1.1 {status} {self._get_reason_phrase(status)}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n{headers}Connection: close\r\n\r\n".encode("latin-1")
            + body
        )


def _head(answer: Answer, *, last: bool) -> bytes:
    """Return all of ``answer`` but its body, as gunicorn writes it. last: the connection ends after it."""
    parts = [gunicorn._get_cached_status_line((1, 1), answer.status)]
    for name, value in answer.headers:
        parts += (name, b": ", value, b"\r\n")
    parts.append(gunicorn._CACHED_SERVER_HEADER)
    parts.append(gunicorn._get_cached_date_header())
    parts.append(b"Connection: close\r\n\r\n" if last else b"\r\n")
    return b"".join(parts)


class Worker(gasgi.ASGIWorker):  # type: ignore[misc]
    """The asgi worker with our Protocol.

    connections: those that stand, oldest first. leaving: how many of them have made way and are about to be gone.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connections: dict[Protocol, None] = {}
        self.leaving = 0
        self._queueing = False
        gasgi.ASGIProtocol = Protocol  # the worker makes its protocols by this name and offers no other way

    def notify(self) -> None:
        """Tell the master that this process lives; the first time, servers stand, lengthen the queue before them."""
        super().notify()
        if self.servers and not self._queueing:
            self._queueing = True
            for listener in self.sockets:
                listener.sock.listen(self.cfg.backlog)

    def handle_exit_signal(self) -> None:
        """Stop accepting at once (gunicorn's own loop would notice within a second) and close what is idle."""
        super().handle_exit_signal()
        for server in self.servers:
            server.close()
        for connection in list(self.connections):
            connection.close_if_idle()


class JsonLogger(Logger):  # type: ignore[misc]
    """gunicorn's log as our JSON lines, under its logger's name; no access log."""

    def setup(self, cfg: Any) -> None:
        """Let the root logger, set up by ``container.log``, write everything."""
        self.cfg = cfg
        self._access_log_enabled = False
        self.loglevel = self.LOG_LEVELS.get(cfg.loglevel.lower(), logging.INFO)
        log.configure("front", cfg.loglevel)
        for logger in (self.error_log, self.access_log):
            logger.handlers.clear()
            logger.propagate = True
        self.error_log.setLevel(self.loglevel)

    def reopen_files(self) -> None:
        """Do nothing: there is no file."""

    def close_on_exec(self) -> None:
        """Do nothing: there is no file."""
