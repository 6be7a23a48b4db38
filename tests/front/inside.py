"""Calling the ASGI application without a server around it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from container.front.asgi import App, create_app
from container.payload import Payload
from container.settings import Settings
from container.wire import messages as m


class Stub:
    """A wire client that answers through two functions of the test."""

    def __init__(
        self,
        invoke: Callable[[str, Payload, float], Awaitable[Payload]] | None = None,
        call: Callable[[m.Request], m.Reply] | None = None,
    ) -> None:
        self.connected = True
        self.lost_at: float | None = None
        self.counted: list[tuple[str, int, int]] = []
        self._invoke = invoke
        self._call = call

    async def connect(self) -> None: ...

    def close(self) -> None: ...

    def counts(self, counts: m.Counts) -> None:
        self.counted += counts.requests

    async def invoke(self, model: str, payload: Payload, deadline: float) -> Payload:
        if self._invoke is None:
            return Payload(payload.body, payload.content_type)
        return await self._invoke(model, payload, deadline)

    async def ask(self, model: str, payload: Payload, deadline: float) -> Payload:
        return await self.invoke(model, payload, deadline)

    async def call(self, request: m.Request) -> m.Reply:
        assert self._call is not None
        return self._call(request)


class Got(NamedTuple):
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def app_with(stub: Stub, tmp_path: Path, **environ: str) -> App:
    settings = {"SAGEMAKER_MULTI_MODEL": "true", "BERTH_STATE_DIR": str(tmp_path), "SAGEMAKER_BASE_DIR": str(tmp_path)}
    return create_app(stub, Settings.read({**settings, **environ}))  # type: ignore[arg-type]


async def ask(
    app: App,
    method: str,
    target: str,
    body: bytes | Iterable[bytes] = b"",
    headers: Iterable[tuple[str, str]] = (),
    *,
    ends: str = "whole",
) -> Got:
    """Send one request. ends: "whole"; "hangs_up" after the chunks; "stays_silent" after them for ever."""
    path, _, query = target.partition("?")
    chunks = [body] if isinstance(body, bytes) else list(body)
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in raw)
    if not framed and isinstance(body, bytes):
        raw.append((b"content-length", b"%d" % len(body)))
    elif not framed:
        raw.append((b"transfer-encoding", b"chunked"))
    scope = {"type": "http", "method": method, "raw_path": path.encode(), "headers": raw}
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if ends == "whole":
        messages[-1]["more_body"] = False
    elif ends == "hangs_up":
        messages.append({"type": "http.disconnect"})
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({**scope, "path": path, "query_string": query.encode()}, receive, send)
    start, rest = sent
    return Got(start["status"], {k.decode(): v.decode("latin-1") for k, v in start["headers"]}, rest["body"])
