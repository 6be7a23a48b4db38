"""The two ends of the wire against each other, over a real Unix socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from container.errors import Failure, Internal, ModelNotFound, Restarting
from container.payload import Payload
from container.wire import messages as m
from container.wire.api import Respond
from container.wire.client import Client
from container.wire.server import serve


class Echo:
    """A service that answers with the body; names tell what goes wrong."""

    def __init__(self) -> None:
        self.cancelled: list[int] = []
        self.gone_peers = 0
        self.held: list[tuple[m.Invoke, Respond]] = []

    def invoke(self, request: m.Invoke, respond: Respond) -> None:
        if request.model == "never_answers":
            self.held.append((request, respond))
        elif request.model == "refuses":
            respond(m.Answer(request.id, Failure("model.not_found", "no such model")))
        else:
            respond(m.Answer(request.id, request.payload))

    def cancel(self, request_id: int, respond: Respond) -> None:
        self.cancelled.append(request_id)

    def gone(self, respond: Respond) -> None:
        self.gone_peers += 1

    def counts(self, counts: m.Counts) -> None: ...

    async def load(self, request: m.Load) -> m.Loaded:
        if request.name == "raises_a_bug":
            raise ZeroDivisionError("secret")
        if request.name == "missing":
            raise ModelNotFound("no such model")
        return m.Loaded(request.id, 7)

    async def unload(self, request: m.Unload) -> m.Unloaded:
        return m.Unloaded(request.id, 7)

    async def list(self, request: m.List) -> m.Page:
        return m.Page(request.id, [])

    async def describe(self, request: m.Describe) -> m.Description:
        return m.Description(request.id, request.name, "", "ready", "device", 0)

    async def ready(self, request: m.Ready) -> m.Status:
        return m.Status(request.id, "ready")

    async def stats(self, request: m.Stats) -> m.Figures:
        return m.Figures(request.id, [])

    async def drain(self, request: m.Drain) -> m.Status:
        return m.Status(request.id, "drained")


def on_a_socket(path: Path, scenario: Callable[[Client, Echo, asyncio.Server], Awaitable[None]]) -> None:
    async def run() -> None:
        service = Echo()
        server = await serve(service, path / "s.sock")
        client = Client(str(path / "s.sock"), "test")
        await asyncio.wait_for(client.connect(), 5)
        try:
            await asyncio.wait_for(scenario(client, service, server), 20)
        finally:
            client.close()
            server.close()

    asyncio.run(run())


def test_small_and_large_bodies_come_back_and_many_are_in_flight(tmp_path: Path) -> None:
    async def scenario(client: Client, service: Echo, server: asyncio.Server) -> None:
        bodies = [b"x" * size for size in (0, 1, 300_000, 5_000_000)] * 5
        answers = await asyncio.gather(*(client.invoke("echo", Payload(b), time.monotonic() + 60) for b in bodies))
        assert [answer.body for answer in answers] == bodies

    on_a_socket(tmp_path, scenario)


def test_errors_keep_their_kind_and_a_bug_tells_nothing_to_the_peer(tmp_path: Path) -> None:
    async def scenario(client: Client, service: Echo, server: asyncio.Server) -> None:
        with pytest.raises(ModelNotFound, match="no such model"):
            await client.invoke("refuses", Payload(b""), 0)
        with pytest.raises(ModelNotFound):
            await client.call(m.Load(0, "missing", "/x"))
        with pytest.raises(Internal) as caught:
            await client.call(m.Load(0, "raises_a_bug", "/x"))
        assert caught.value.message == Internal.TEXT
        assert await client.call(m.Load(0, "fine", "/x")) == m.Loaded(4, 7)

    on_a_socket(tmp_path, scenario)


def test_a_caller_that_gives_up_cancels_on_the_other_side(tmp_path: Path) -> None:
    async def scenario(client: Client, service: Echo, server: asyncio.Server) -> None:
        waiting = asyncio.ensure_future(client.invoke("never_answers", Payload(b""), 0))
        while not service.held:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await client.call(m.Ready(0))
        assert service.cancelled == [service.held[0][0].id]

    on_a_socket(tmp_path, scenario)


def test_when_the_peer_dies_what_is_in_flight_fails_and_the_client_comes_back_by_itself(tmp_path: Path) -> None:
    async def scenario(client: Client, service: Echo, server: asyncio.Server) -> None:
        waiting = asyncio.ensure_future(client.invoke("never_answers", Payload(b""), 0))
        while not service.held:
            await asyncio.sleep(0.01)
        server.close()
        service.held[0][1].__self__.transport.abort()  # type: ignore[attr-defined]
        with pytest.raises(Restarting):
            await waiting
        assert not client.connected and client.lost_at is not None
        with pytest.raises(Restarting):
            await client.invoke("echo", Payload(b""), 0)
        again = await serve(service, tmp_path / "s.sock")
        while not client.connected:
            await asyncio.sleep(0.01)
        assert (await client.invoke("echo", Payload(b"back"), 0)).body == b"back"
        assert client.lost_at is None
        again.close()

    on_a_socket(tmp_path, scenario)
