"""The limit of the front: bare gunicorn with its asgi worker, answering each body with itself."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from bench.peers.server import Server

_JSON = (b"content-type", b"application/json")


class Echo(Server):
    """One gunicorn worker, no model, no second process."""

    name: ClassVar[str] = "echo"

    def command(self) -> list[str]:
        """Return gunicorn's command line."""
        options = ["--worker-class", "asgi", "--asgi-loop", "uvloop", "--workers", "1", "--no-control-socket"]
        options += ["--bind", f"127.0.0.1:{self.port}", "--keep-alive", "75", "--log-level", "warning"]
        return [sys.executable, "-m", "gunicorn", *options, "bench.peers.echo:app"]


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer with the body that came; an ASGI application."""
    if scope["type"] != "http":
        return
    message = await receive()
    body = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    headers = [_JSON, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
