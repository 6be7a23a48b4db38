"""The short way of an ordinary invocation: from the bytes of a connection to the engine and back, without a task.

    connection ─ bytes ─> Express.take ─ Invoke ─> engine ─ Answer ─> Ride ─ bytes ─> connection

ASGI costs four changes of task, a dozen dictionaries and two readings of the headers for each request: more than the
engine and the model's process together spend on a small one. So a request that is ordinary in every respect (``plain``)
is answered right here. All others go gunicorn's way to ``asgi.App``; so does an answer that comes in pieces. Both ways
give the same bytes; tests/front/test_express.py holds one against the other.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple, Protocol

from container import log
from container.errors import Failure, Internal, QueueFull, ServingError
from container.front import errors, routes
from container.front.counts import Requests
from container.front.errors import Answer
from container.front.flights import Flight, Flights, too_late
from container.front.headers import Streamed, answer_of, payload_of, request_id_of, streamed_of
from container.front.intake import Budget
from container.payload import Payload
from container.wire import messages as m
from container.wire.client import Client
from container.wire.stream import Stream

_log = log.get(__name__)

Send = Callable[[dict[str, Any]], Awaitable[None]]

#: Counted for a caller that hung up before its answer; nobody ever receives it.
HUNG_UP = 499

#: The request line of an invocation and well-formed header lines: nothing that gunicorn's parser would refuse or read
#: in another way. No name with '_' (gunicorn drops those), no percent-encoding, no query, no absolute form.
_HEAD = re.compile(
    rb"POST /(?:invocations|models/([A-Za-z0-9._-]{1,256})/invoke) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+.^`|~0-9A-Za-z-]++:[\t\x20-\x7e\x80-\xff]*+\r\n)++)\r\n"
)
_MAX_HEAD_BYTES = 4096
_MAX_FIELDS = 64
_MAX_LENGTH_DIGITS = 10
#: Fields that mean something for the connection, the framing or the scheme.
_NOT_PLAIN = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"content-encoding", b"http2-settings"}) | {
    b"x-forwarded-protocol",
    b"x-forwarded-proto",
    b"x-forwarded-ssl",
}


class Plain(NamedTuple):
    """An ordinary invocation. model: "" for /invocations. fields: headers by lower-case name."""

    model: str
    fields: dict[bytes, bytes]
    body: bytes


def plain(data: bytes) -> Plain | None:
    """Return the request that ``data`` is from its first to its last byte; None if it is anything but ordinary. Pure.

    Ordinary: POST of a whole body with Content-Length to one of the two paths, no header twice, none with a meaning
    for more than the body and the answer.
    """
    head = _HEAD.match(data)
    if head is None or head.end() > _MAX_HEAD_BYTES:
        return None
    lines = head[2].split(b"\r\n")
    lines.pop()
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        fields[name.lower()] = value.strip(b" \t")
    length = fields.get(b"content-length", b"")
    if (
        len(fields) != len(lines)
        or len(lines) > _MAX_FIELDS
        or not length.isdigit()
        or len(length) > _MAX_LENGTH_DIGITS
        or int(length) != len(data) - head.end()
        or not _NOT_PLAIN.isdisjoint(fields)
        or fields.get(b"connection", b"keep-alive").lower() != b"keep-alive"
    ):
        return None
    return Plain((head[1] or b"").decode(), fields, data[head.end() :])


class Connection(Protocol):
    """What a Ride needs of the connection that its request came on."""

    def answer(self, answer: Answer) -> None:
        """Send ``answer``; the connection is free for the next request."""

    def hand_over(self, application: Callable[[Send], Awaitable[None]]) -> None:
        """Give the request to gunicorn, which calls ``application`` for the answer."""


class Express:
    """The short way of one front process; shares all but its form with ``asgi.App``, which makes it."""

    def __init__(
        self,
        client: Client,
        flights: Flights,
        budget: Budget,
        requests: Requests,
        ids: Iterator[bytes],
        accept: str,
        limit_bytes: int,
        pour: Callable[[str, Streamed, Send], Awaitable[None]],
    ) -> None:
        self.client = client
        self.flights = flights
        self.budget = budget
        self.requests = requests
        self.pour = pour
        self._ids = ids
        self._accept = accept
        self._limit = limit_bytes

    def take(self, connection: Connection, data: bytes) -> Ride | None:
        """Return the ride of the request that ``data`` is, to be started; None if it has to go gunicorn's way."""
        request = plain(data)
        if request is None or len(request.body) > self._limit:
            return None
        request_id = request_id_of(request.fields) or next(self._ids)
        payload = payload_of(request.body, request.fields, request_id, self._accept)
        return Ride(self, connection, data, request.model, payload, request_id)


class Ride:
    """One request on the short way; ends with an answer, with being handed over, or with its caller hanging up.

    raw: the request as it came.
    """

    def __init__(
        self, express: Express, connection: Connection, raw: bytes, model: str, payload: Payload, request_id: bytes
    ) -> None:
        self.raw = raw
        self._express = express
        self._connection = connection
        self._model = model
        self._payload = payload
        self._request_id = request_id
        self._flight: Flight | None = None
        self._abandon: Callable[[], None] = lambda: None
        self._stream: Stream | None = None

    def start(self) -> None:
        """Ask the engine; whatever is wrong is the answer."""
        express = self._express
        try:
            express.flights.admit(self._model)
            express.budget.take(len(self._payload.body))
        except QueueFull as error:
            self._answer(errors.answer(error, self._request_id))
            return
        self._flight = express.flights.start(self._model, self)
        self._abandon = express.client.forward(
            self._model, self._payload, self._flight.deadline, self._on_result, self._on_part
        )

    def cancel(self) -> None:
        """The sweep's word that the time is over; answered in the next turn of the loop."""
        asyncio.get_running_loop().call_soon(self._expire)

    def hang_up(self) -> None:
        """The caller is gone: nobody waits for the answer any more."""
        if self._stream is not None:
            self._stream.close()
        elif self._land():
            self._abandon()
        self._express.requests.add(self._operation, HUNG_UP)

    @property
    def _operation(self) -> str:
        return routes.INVOKE if self._model else routes.INVOCATIONS

    def _land(self) -> bool:
        """End the flight and give the body's bytes back; False if that was done before."""
        flight, self._flight = self._flight, None
        if flight is None:
            return False
        self._express.flights.end(flight)
        self._express.budget.give_back(len(self._payload.body))
        return True

    def _expire(self) -> None:
        if self._land():
            self._abandon()
            self._answer(errors.answer(too_late(self._model, self._payload.body), self._request_id))

    def _on_result(self, result: Payload | Failure) -> None:
        if self._stream is not None:
            self._stream.feed(m.Answer(0, result))
        elif self._land():
            self._answer(self._answer_of(result))

    def _answer_of(self, result: Payload | Failure) -> Answer:
        try:
            if isinstance(result, Payload):
                return answer_of(result, self._request_id)
            error = ServingError.from_failure(result)
            if isinstance(error, QueueFull):
                self._express.flights.refused(self._model, error)
            return errors.answer(error, self._request_id)
        except Exception:  # noqa: BLE001 - an edge of the process: fixed text out, the traceback to the log
            fields = {"request_id": self._request_id.decode("latin-1")}
            _log.exception("a request failed in a way nobody foresaw", extra={"fields": fields})
            return errors.answer(Internal(Internal.TEXT), self._request_id)

    def _on_part(self, part: Payload) -> None:
        if self._stream is not None:
            self._stream.feed(m.Chunk(0, part))
        elif self._land():
            stream = self._stream = Stream(part, self._abandon)
            streamed = streamed_of(stream, self._request_id)
            self._connection.hand_over(lambda send: self._express.pour(self._operation, streamed, send))

    def _answer(self, answer: Answer) -> None:
        self._express.requests.add(self._operation, answer.status)
        if answer.status in (204, 304):  # these have no body, and rules of their own for what frames one
            self._connection.hand_over(lambda send: _send(answer, send))
        else:
            self._connection.answer(answer)


async def _send(answer: Answer, send: Send) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": answer.body})
