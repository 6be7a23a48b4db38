"""The front as an ASGI application: routes in, bytes on to the engine, bytes out. It decodes no body.

    create_app(client, settings)  ->  App(scope, receive, send)

Everything that machines call is answered here, on the event loop; what people look at is in ``pages.py``, behind a
thread pool. A caller that hangs up has its task cancelled by gunicorn, and with it the request to the engine.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast

from container import log
from container.errors import BadMethod, Internal, MediaType, ModelTimeout, QueueFull, ServingError
from container.front import control, errors, routes, v2
from container.front.counts import Requests
from container.front.errors import Answer
from container.front.express import HUNG_UP, Express
from container.front.flights import Flights, too_late
from container.front.headers import (
    TARGET_MODEL,
    Streamed,
    answer_of,
    fields_of,
    payload_of,
    request_id_of,
    streamed_of,
)
from container.front.health import Health
from container.front.intake import Body, Budget, Receive, declared_length
from container.payload import Payload
from container.settings import Settings
from container.wire.client import Client
from container.wire.stream import Stream

_log = log.get(__name__)

Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]
T = TypeVar("T")
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

#: A body of POST /models holds two short strings.
_CONTROL_BODY_BYTES = 1 << 20
_REPORT_S = 1.0
#: A worker takes connections at the latest after this long twice, engine or none: /ping must be answered within 2 s.
ARRIVE_S = 0.5
#: What the platform waits for the end of a streamed answer (contract.md section 1.2).
STREAM_S = 480.0


class App:
    """One front process. ``requests``: what was counted; ``budget``: bytes of bodies in flight."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._limit = settings.max_payload_bytes
        self._accept = settings.default_accept
        self._ids = (b"%s-%x" % (prefix, n) for prefix in (os.urandom(5).hex().encode(),) for n in itertools.count(1))
        self._pages: AsgiApp | None = None
        self._background: list[asyncio.Task[None]] = []
        self.budget = Budget.for_payloads(settings.max_payload_bytes)
        self.flights = Flights(most=settings.queue_length)
        self.health = Health(client, settings)
        self.requests = Requests()
        #: The short way of ordinary invocations, for a server that knows it; it answers as ``__call__`` would.
        self.express = Express(
            client, self.flights, self.budget, self.requests, self._ids, self._accept, self._limit, self._pour
        )
        self.operations: dict[str, Callable[[str, Scope, Receive], Awaitable[Answer | Streamed]]] = {
            routes.INVOKE: self._invoke,
            routes.INVOCATIONS: self._invocations,
            routes.PING: self._ping,
            routes.LIST: self._list,
            routes.LOAD: self._load,
            routes.DESCRIBE: self._describe,
            routes.UNLOAD: self._unload,
            routes.V2_INFER: self._v2_infer,
            routes.V2_VERSION_INFER: self._v2_infer,
            **v2.V2(client, settings, self.health, self._control_body).operations,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        operation = "none"
        try:
            operation, name = routes.match(scope["raw_path"], scope["method"])
            if operation is routes.PAGE:
                await self._page(scope, receive, send)
                return
            answer = await self.operations[operation](name, scope, receive)
            if isinstance(answer, Streamed):
                await self._pour(operation, answer, send)
                return
        except BadMethod as error:
            answer = _refusal(scope)(error)
            answer.headers.append((b"allow", routes.allowed(scope["raw_path"]).encode()))
        except ServingError as error:
            answer = _refusal(scope)(error)
        except asyncio.CancelledError:
            self.requests.add(operation, HUNG_UP)
            raise
        except Exception:  # noqa: BLE001 - an edge of the process: fixed text out, the traceback to the log
            answer = self._unforeseen(scope)
        self.requests.add(operation, answer.status)
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})

    async def _invoke(self, name: str, scope: Scope, receive: Receive) -> Answer | Streamed:
        fields = fields_of(scope["headers"])
        request_id = request_id_of(fields) or next(self._ids)
        try:
            answer = await self._ask(name, fields, request_id, receive, self._client.ask)
            return streamed_of(answer, request_id) if isinstance(answer, Stream) else answer_of(answer, request_id)
        except ServingError as error:
            return errors.answer(error, request_id)

    async def _v2_infer(self, name: str, scope: Scope, receive: Receive) -> Answer:
        fields = fields_of(scope["headers"])
        request_id = request_id_of(fields) or next(self._ids)
        try:
            fields[b"content-type"] = v2.infer_type(fields, routes.version_of(scope["raw_path"]))
            model = v2.engine_name(self._settings, name)
            payload = await self._ask(model, fields, request_id, receive, self._client.invoke)
            return v2.infer_answer(payload, request_id)
        except ServingError as error:
            return errors.v2_answer(error, request_id)

    async def _ask(
        self,
        name: str,
        fields: dict[bytes, bytes],
        request_id: bytes,
        receive: Receive,
        invoke: Callable[[str, Payload, float], Awaitable[T]],
    ) -> T:
        """Return what ``invoke`` answers to the request whose headers are ``fields``. Raises ServingError."""
        if b"content-encoding" in fields:
            raise _encoded(fields[b"content-encoding"])
        self.flights.admit(name)
        body = Body(declared_length(fields), self._limit, self.budget)
        flight = self.flights.start(name)
        data: bytes | None = None
        try:
            data = await body.read(receive)
            payload = payload_of(data, fields, request_id, self._accept)
            return await invoke(name, payload, flight.deadline)
        except QueueFull as error:
            self.flights.refused(name, error)
            raise
        except asyncio.CancelledError:
            if flight.expired:
                raise too_late(name, data) from None
            raise  # the caller has hung up
        finally:
            self.flights.end(flight)
            body.done()

    async def _pour(self, operation: str, answer: Streamed, send: Send) -> None:
        """Send an answer in pieces as they come; one that fails half-way ends without the last chunk."""
        status = answer.status
        try:
            await send({"type": "http.response.start", "status": status, "headers": answer.headers})
            async with asyncio.timeout(STREAM_S):
                while (piece := await answer.stream.read()) is not None:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except (ServingError, TimeoutError) as error:
            late = ModelTimeout(f"its end did not come within {STREAM_S:.0f} s")
            reason = error if isinstance(error, ServingError) else late
            status = errors.status_of(reason)
            _log.warning("an answer broke off after its first pieces: %s: %s", reason.code, reason)
            raise asyncio.CancelledError from None  # gunicorn then closes the connection and says nothing
        except asyncio.CancelledError:
            status = HUNG_UP
            raise
        finally:
            answer.stream.close()
            self.requests.add(operation, status)

    async def _invocations(self, _: str, scope: Scope, receive: Receive) -> Answer | Streamed:
        return await self._invoke("", scope, receive)  # the engine knows which one that is

    async def _ping(self, _: str, __: Scope, ___: Receive) -> Answer:
        return self.health.answer()

    async def _list(self, _: str, scope: Scope, __: Receive) -> Answer:
        return await control.list_models(self._client, scope["query_string"])

    async def _load(self, _: str, scope: Scope, receive: Receive) -> Answer:
        fields = fields_of(scope["headers"])
        data = await self._control_body(fields, receive)
        return await control.load(self._client, data, scope["query_string"], _target(fields))

    async def _control_body(self, fields: dict[bytes, bytes], receive: Receive) -> bytes:
        body = Body(declared_length(fields), min(self._limit, _CONTROL_BODY_BYTES), self.budget)
        flight = self.flights.start()
        try:
            return await body.read(receive)
        except asyncio.CancelledError:
            if flight.expired:
                raise too_late("", None) from None
            raise
        finally:
            self.flights.end(flight)
            body.done()

    async def _describe(self, name: str, _: Scope, __: Receive) -> Answer:
        return await control.describe(self._client, name)

    async def _unload(self, name: str, scope: Scope, _: Receive) -> Answer:
        return await control.unload(self._client, name, _target(fields_of(scope["headers"])))

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._pages is None:
            loop = asyncio.get_running_loop()
            self._pages = await loop.run_in_executor(None, _build_pages, self._client, self.requests, loop)

        async def counted(message: dict[str, Any]) -> None:
            """Count the answer of a page by its status."""
            if message["type"] == "http.response.start":
                self.requests.add(routes.PAGE, message["status"])
            await send(message)

        await self._pages(scope, receive, counted)

    def _unforeseen(self, scope: Scope) -> Answer:
        request_id = request_id_of(fields_of(scope["headers"])) or next(self._ids)
        _log.exception(
            "a request failed in a way nobody foresaw", extra={"fields": {"request_id": request_id.decode()}}
        )
        return errors.answer(Internal(Internal.TEXT), request_id)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        await receive()
        self.start()
        await self._arrive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    def start(self) -> None:
        """Start what runs beside the requests: the connection to the engine, the sweep, the counts."""
        work = (
            self._client.connect(),
            self.flights.keep_sweeping(),
            self.health.wait_for_first_models(),
            self._report(),
        )
        self._background = [_task(each) for each in work]

    async def _arrive(self) -> None:
        """Wait a moment for the engine: a worker in another's place answers its first request as that one did."""
        await asyncio.wait(self._background[:1], timeout=ARRIVE_S)
        try:
            async with asyncio.timeout(ARRIVE_S):
                await self.health.look()
        except (TimeoutError, ServingError):
            pass  # the engine has just died, or is very busy: /ping allows for that

    async def stop(self) -> None:
        """Send the last counts and end what ``start`` started."""
        self._send_counts()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._client.close()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            self._send_counts()

    def _send_counts(self) -> None:
        if self._client.connected and (counts := self.requests.take()) is not None:
            self._client.counts(counts)


def create_app(client: Client, settings: Settings) -> App:
    """Return the front as an ASGI application; ``client`` is connected by its lifespan."""
    return App(client, settings)


def _task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    def tell(task: asyncio.Task[None]) -> None:
        """Log what ended the task, if it was not cancelled."""
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("background work ended", exc_info=error)

    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(tell)
    return task


def _build_pages(client: Client, requests: Requests, loop: asyncio.AbstractEventLoop) -> AsgiApp:
    """Return the Flask pages; called on a thread, because Flask is 150 ms of imports that /ping must not wait for."""
    from container.front import pages

    app: Any = pages.asgi_app(client, requests, loop)
    return cast(AsgiApp, app)


def _refusal(scope: Scope) -> Callable[[ServingError], Answer]:
    """Return how errors are told on this path."""
    return errors.v2_answer if routes.is_v2(scope["raw_path"]) else errors.answer


def _target(fields: dict[bytes, bytes]) -> str:
    return fields.get(TARGET_MODEL, b"")[:1024].decode("latin-1")


def _encoded(encoding: bytes) -> MediaType:
    shown = encoding[:40].decode("latin-1")
    return MediaType(f"Content-Encoding {shown} is not read: send the body as it is")
