"""What stands in for the engine: a Service behind the real wire, whose models are named for what they do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from container.errors import BadPageToken, Failure, ModelExists, ModelNotFound
from container.payload import Payload
from container.wire import messages as m
from container.wire.api import Respond
from container.wire.server import _Connection


class Engine:
    """Answers any invoke by the name of the model; ``seen`` is every request that arrived."""

    def __init__(self) -> None:
        self.seen: list[m.Request] = []
        self.held: list[tuple[m.Invoke, Respond]] = []
        self.counted: dict[tuple[str, int], int] = {}
        self.models: dict[str, str] = {}
        self.state = "ready"
        self.loop: asyncio.AbstractEventLoop

    def invoke(self, request: m.Invoke, respond: Respond) -> None:
        self.seen.append(request)
        payload = request.payload
        result: Payload | Failure = Payload(payload.body, payload.content_type)
        match request.model:
            case "never_answers":
                self.held.append((request, respond))
                return
            case "tells_word_by_word" | "breaks_off" | "never_ends":
                if request.model == "never_ends":  # held before its first word: who has read that may release it
                    self.held.append((request, respond))
                for word in payload.body.split():
                    respond(m.Chunk(request.id, Payload(word + b" ", "text/event-stream", headers={"X-Fine": "yes"})))
                if request.model == "never_ends":
                    return
                result = Payload(b"end") if request.model == "tells_word_by_word" else Failure("model.failed", "oh")
            case "answers_a_lot":
                result = Payload(b"x" * int(payload.body), "application/octet-stream")
            case "splits_the_answer":
                evil = "a\r\nX-Evil: 1\r\n\r\n<html>"
                headers = {"X-Fine": "yes", "X-Split": evil, "Bad Name": "1", "Transfer-Encoding": "chunked"}
                headers |= {"Connection": "upgrade", "Content-Length": "0", "X-Snowman": "\u2603"}
                result = Payload(b"body", f"text/plain{evil}", attributes=evil, headers=headers)
            case "says_teapot":
                result = Payload(b"short and stout", "text/plain", status=418)
            case "has_nothing_to_say":
                result = Payload(b"ignored", "text/plain", status=204)
            case "invents_a_status":
                result = Payload(b"ok", "text/plain", status=1000)
            case "fails_with_its_own_code":
                result = Failure("model.failed", "not today", status=422)
            case "unknown":
                result = Failure("model.not_found", "no model 'unknown' is registered")
            case "is_busy":
                result = Failure("memory.busy", "try again", retry_after_s=2.5)
        respond(m.Answer(request.id, result))

    def release(self, body: bytes) -> None:
        """Answer every held request with ``body``; may be called from any thread."""
        for request, respond in self.held:
            self.loop.call_soon_threadsafe(respond, m.Answer(request.id, Payload(body)))

    def cancel(self, request_id: int, respond: Respond) -> None:
        self.seen.append(m.Cancel(request_id))

    def gone(self, respond: Respond) -> None: ...

    def counts(self, counts: m.Counts) -> None:
        for route, status, number in counts.requests:
            self.counted[route, status] = self.counted.get((route, status), 0) + number

    async def load(self, request: m.Load) -> m.Loaded:
        self.seen.append(request)
        if request.name in self.models:
            raise ModelExists(f"model {request.name!r} is already registered")
        if request.name.startswith("slow"):
            await asyncio.sleep(0.5)
        self.models[request.name] = request.url
        return m.Loaded(request.id, 1000, {"read": 1.5})

    async def unload(self, request: m.Unload) -> m.Unloaded:
        self._known(request.name)
        del self.models[request.name]
        return m.Unloaded(request.id, 1000)

    async def list(self, request: m.List) -> m.Page:
        if request.token and request.token not in self.models:
            raise BadPageToken("not a token of this server")
        names = sorted(name for name in self.models if name > request.token)
        page = names[: request.limit]
        entries = [m.Entry(name, self.models[name]) for name in page]
        return m.Page(request.id, entries, page[-1] if len(names) > len(page) else "")

    async def describe(self, request: m.Describe) -> m.Description:
        url = self._known(request.name)
        return m.Description(request.id, request.name, url, "ready", "device", 1000, 250, "", "echo", "handler")

    async def ready(self, request: m.Ready) -> m.Status:
        return m.Status(request.id, self.state, "cpu", 1)

    async def stats(self, request: m.Stats) -> m.Figures:
        rows = [("berth_models", {"tier": "device"}, 3.0), ("berth_wait_seconds_bucket", {"le": "0.1"}, 1.0)]
        rows += [("berth_wait_seconds_bucket", {"le": "+Inf"}, 2.0), ("berth_wait_seconds_sum", {}, 0.5)]
        rows += [("berth_wait_seconds_count", {}, 2.0)]
        for (route, code), number in self.counted.items():
            rows.append(("berth_http_requests_total", {"route": route, "code": str(code)}, float(number)))
        return m.Figures(request.id, rows)

    async def drain(self, request: m.Drain) -> m.Status:
        return m.Status(request.id, "drained")

    def _known(self, name: str) -> str:
        if name not in self.models:
            raise ModelNotFound(f"no model {name!r} is registered")
        return self.models[name]


class Running:
    """An Engine on a thread, behind the Unix socket ``path``."""

    def __init__(self, path: Path, engine: Engine | None = None) -> None:
        self.engine = engine or Engine()
        self._path = path
        self._loop = asyncio.new_event_loop()
        self.engine.loop = self._loop
        self._stop = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine double")

    def __enter__(self) -> Engine:
        self._thread.start()
        assert self._up.wait(10)
        return self.engine

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        connections: list[_Connection] = []
        peers: dict[str, _Connection] = {}

        def connection() -> _Connection:
            connections.append(_Connection(self.engine, peers))
            return connections[-1]

        self._path.unlink(missing_ok=True)
        server = await asyncio.get_running_loop().create_unix_server(connection, str(self._path))
        self._up.set()
        await self._stop.wait()
        server.close()
        for each in connections:
            if each.transport is not None:
                each.transport.abort()
        await asyncio.sleep(0)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Return what ``work`` returns."""
    return asyncio.run(work)
