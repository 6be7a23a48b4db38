"""Answers in pieces over a real Unix socket: order, ends, hanging up, falling behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from container.errors import Failure, ModelFailed, QueueFull, Restarting
from container.payload import Payload
from container.wire import frames
from container.wire import messages as m
from container.wire.api import Respond
from container.wire.client import Client
from container.wire.server import serve
from container.wire.stream import MAX_WAITING_BYTES, Stream


class Teller:
    """A service that answers in the pieces the body names; the model's name tells how it ends."""

    def __init__(self) -> None:
        self.asked: list[m.Invoke] = []
        self.cancelled: list[int] = []

    def invoke(self, request: m.Invoke, respond: Respond) -> None:
        self.asked.append(request)
        for word in request.payload.body.split(b"|"):
            respond(m.Chunk(request.id, Payload(word, "text/plain")))
        if request.model == "breaks_off":
            respond(m.Answer(request.id, Failure("model.failed", "half-way")))
        elif request.model != "never_ends":
            respond(m.Answer(request.id, Payload(b".", "text/plain")))

    def cancel(self, request_id: int, respond: Respond) -> None:
        self.cancelled.append(request_id)

    def gone(self, respond: Respond) -> None: ...

    def counts(self, counts: m.Counts) -> None: ...


def run(tmp_path: Path, scenario: Callable[[Teller, Client], Awaitable[None]]) -> None:
    async def main() -> None:
        service = Teller()
        server = await serve(service, tmp_path / "s.sock")  # type: ignore[arg-type]
        client = Client(str(tmp_path / "s.sock"), "test")
        await client.connect()
        try:
            await asyncio.wait_for(scenario(service, client), 20)
        finally:
            client.close()
            server.close()
            await asyncio.sleep(0)

    asyncio.run(main())


async def begun(client: Client, model: str, body: bytes) -> Stream:
    answer = await client.ask(model, Payload(body), 1e12)
    assert isinstance(answer, Stream)
    return answer


async def rest(stream: Stream) -> bytes:
    pieces = []
    while (piece := await stream.read()) is not None:
        pieces.append(piece)
    return b"".join(pieces)


def test_pieces_come_in_order_and_end_with_the_answer_even_when_some_are_large(tmp_path: Path) -> None:
    large = b"x" * (frames.BULK_BYTES + 1)

    async def scenario(service: Teller, client: Client) -> None:
        stream = await begun(client, "m", b"a|" + large + b"|b|" + large)
        assert (stream.head.body, stream.head.content_type) == (b"a", "text/plain")
        assert await rest(stream) == b"a" + large + b"b" + large + b"."
        assert await stream.read() is None
        assert [request.stream for request in service.asked] == [True]
        stream.close()
        await asyncio.sleep(0.05)
        assert service.cancelled == []

    run(tmp_path, scenario)


def test_a_failure_half_way_comes_after_what_was_said_before_it(tmp_path: Path) -> None:
    async def scenario(_: Teller, client: Client) -> None:
        stream = await begun(client, "breaks_off", b"a|b")
        assert await stream.read() == b"ab"
        with pytest.raises(ModelFailed, match="half-way"):
            await stream.read()

    run(tmp_path, scenario)


def test_who_closes_a_stream_early_tells_the_other_side_once(tmp_path: Path) -> None:
    async def scenario(service: Teller, client: Client) -> None:
        stream = await begun(client, "never_ends", b"a")
        stream.close()
        stream.close()
        while not service.cancelled:
            await asyncio.sleep(0.002)
        assert service.cancelled == [service.asked[0].id]

    run(tmp_path, scenario)


def test_a_peer_that_dies_ends_its_streams(tmp_path: Path) -> None:
    async def scenario(_: Teller, client: Client) -> None:
        stream = await begun(client, "never_ends", b"a")
        assert await stream.read() == b"a"
        reading = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0)
        client.close()
        with pytest.raises(Restarting):
            await reading

    run(tmp_path, scenario)


def test_a_reader_that_falls_too_far_behind_is_let_go(tmp_path: Path) -> None:
    piece = b"y" * (1 << 20)

    async def scenario(service: Teller, client: Client) -> None:
        stream = await begun(client, "never_ends", b"|".join([piece] * (MAX_WAITING_BYTES // len(piece) + 1)))
        while not service.cancelled:
            await asyncio.sleep(0.002)
        await stream.read()
        with pytest.raises(QueueFull, match="not read in time"):
            await stream.read()

    run(tmp_path, scenario)


def test_forwarding_hands_pieces_on_and_the_end_once(tmp_path: Path) -> None:
    async def scenario(service: Teller, client: Client) -> None:
        parts: list[bytes] = []
        ended: asyncio.Future[Payload | Failure] = asyncio.get_running_loop().create_future()
        client.forward("m", Payload(b"a|b"), 1e12, ended.set_result, lambda piece: parts.append(piece.body))
        assert await ended == Payload(b".", "text/plain")
        assert parts == [b"a", b"b"]

    run(tmp_path, scenario)
