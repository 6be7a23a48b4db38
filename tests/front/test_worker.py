"""Clients that say nothing, that come in crowds, that do not read: gunicorn's protocol with our changes."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from gunicorn.config import Config

from container.front import worker
from container.front.worker import Protocol


async def app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    size = int(scope["path"].strip("/") or 2)
    headers = [(b"content-length", b"%d" % size)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"x" * size})


class Serving:
    """Protocol on a loopback port, on the loop of the test."""

    def __init__(self, **settings: Any) -> None:
        cfg = Config()
        for name, value in {"keepalive": 75, "asgi_disconnect_grace_period": 0, **settings}.items():
            cfg.set(name, value)
        log = SimpleNamespace(access_log_enabled=False, debug=print, info=print, warning=print, exception=print)
        self.worker = SimpleNamespace(
            cfg=cfg, log=log, asgi=app, nr_conns=0, nr=0, max_requests=1 << 60, alive=True, state={}, connections={}
        )
        self.worker.leaving = 0

    async def __aenter__(self) -> Serving:
        self.worker.loop = asyncio.get_running_loop()
        self.server = await self.worker.loop.create_server(lambda: Protocol(self.worker), "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for connection in list(self.worker.connections):
            connection.transport.abort()
        await asyncio.sleep(0.01)


def test_a_connection_that_never_asks_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "FIRST_REQUEST_S", 0.05)
    monkeypatch.setattr(worker, "HEADERS_S", 0.05)

    async def scenario() -> None:
        async with Serving() as serving:
            for said in (b"", b"GET /ping HTT", b"GET / HTTP/1.1\r\nHost: a\r\n"):
                reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
                writer.write(said)
                assert await asyncio.wait_for(reader.read(), 5) == b""
                writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await reader.readuntil(b"\r\n\r\nxx")
            await asyncio.sleep(0.1)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\nxx")).startswith(b"HTTP/1.1 200"), "one that has asked is kept"
            writer.close()

    uvloop.run(scenario())


def test_headers_that_do_not_end_are_not_waited_for_on_an_old_connection_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "HEADERS_S", 0.1)

    async def scenario() -> None:
        async with Serving() as serving:
            reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
            for _ in range(2):
                writer.write(b"GET / HTTP/1.1\r\n")
                await asyncio.sleep(0.02)
                writer.write(b"Host: a\r\n\r\n")
                assert (await reader.readuntil(b"\r\n\r\nxx")).startswith(b"HTTP/1.1 200")
                await asyncio.sleep(0.15)
            started = time.monotonic()
            writer.write(b"GET / HTTP/1.1\r\n")
            while not reader.at_eof():
                writer.write(b"A: b\r\n")
                await asyncio.sleep(0.02)
                assert time.monotonic() - started < 5
            writer.close()

    uvloop.run(scenario())


def test_an_idle_connection_makes_way_for_a_new_one_first_those_that_never_asked() -> None:
    async def scenario() -> None:
        async with Serving(worker_connections=2) as serving:
            asked_reader, asked = await asyncio.open_connection("127.0.0.1", serving.port)
            asked.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await asked_reader.readuntil(b"\r\n\r\nxx")
            silent = [await asyncio.open_connection("127.0.0.1", serving.port) for _ in range(30)]
            for reader, _ in silent[:-1]:
                assert await asyncio.wait_for(reader.read(), 5) == b""
            for reader, writer in ((asked_reader, asked), silent[-1]):
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await reader.readuntil(b"\r\n\r\nxx")).startswith(b"HTTP/1.1 200")
            assert (serving.worker.nr_conns, serving.worker.leaving, len(serving.worker.connections)) == (2, 0, 2)
            for writer in (asked, *(writer for _, writer in silent)):
                writer.close()

    uvloop.run(scenario())


def test_connections_over_the_cap_are_told_to_come_back_when_all_others_are_at_work() -> None:
    async def scenario() -> None:
        async with Serving(worker_connections=2) as serving:
            kept = [await asyncio.open_connection("127.0.0.1", serving.port) for _ in range(2)]
            for _, writer in kept:
                writer.write(b"GET /30000000 HTTP/1.1\r\nHost: a\r\n\r\n")
            await asyncio.gather(*(reader.readuntil(b"\r\n\r\n") for reader, _ in kept))
            reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
            answer = await asyncio.wait_for(reader.read(), 5)
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"Retry-After: 1\r\n" in answer
            assert answer.endswith(
                b'{"code":503,"type":"ServiceUnavailableException",'
                b'"message":"too many connections; try again in a moment","reason":"server.queue_full"}'
            )
            for each in (writer, *(writer for _, writer in kept)):
                each.close()
                await each.wait_closed()
            deadline = time.monotonic() + 60
            while serving.worker.nr_conns:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\nxx")).startswith(b"HTTP/1.1 200")
            writer.close()

    uvloop.run(scenario())


async def ask_for_30_mb(serving: Serving, stream: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    stream.setblocking(False)
    await loop.sock_connect(stream, ("127.0.0.1", serving.port))
    await loop.sock_sendall(stream, b"GET /30000000 HTTP/1.1\r\nHost: a\r\n\r\n")


def test_a_client_that_reads_nothing_is_let_go_and_one_that_reads_slowly_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "STALL_S", 0.3)

    async def scenario() -> None:
        async with Serving() as serving:
            loop = asyncio.get_running_loop()
            with socket.socket() as reading, socket.socket() as sleeping:
                await ask_for_30_mb(serving, reading)
                await ask_for_30_mb(serving, sleeping)
                got = len(await loop.sock_recv(reading, 100_000))
                deadline = time.monotonic() + 60
                while len(serving.worker.connections) > 1 or got < 30_000_000:
                    got += len(await loop.sock_recv(reading, 100_000))
                    await asyncio.sleep(0 if len(serving.worker.connections) == 1 else 0.01)
                    assert time.monotonic() < deadline
                (connection,) = serving.worker.connections
                assert connection.transport.get_extra_info("peername") == reading.getsockname()

    uvloop.run(scenario())


def test_a_client_that_does_not_read_its_last_answer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "FLUSH_S", 0.05)

    async def scenario() -> None:
        async with Serving() as serving:
            with socket.socket() as stream:
                await ask_for_30_mb(serving, stream)
                deadline = time.monotonic() + 60
                while serving.worker.nr == 0 and not serving.worker.connections:
                    await asyncio.sleep(0.01)
                (connection,) = serving.worker.connections
                await asyncio.sleep(0.05)
                connection._close_transport()
                while serving.worker.connections:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.01)

    uvloop.run(scenario())


def test_a_connection_that_was_closed_is_gone_without_waiting_for_the_garbage_collector() -> None:
    """Whoever ends it, and however far its request had come: nothing of it stays, neither in a circle nor a timer."""

    async def scenario() -> None:
        async with Serving() as serving:
            gc.collect()
            gc.disable()
            try:
                for ending in ("", "Connection: close\r\n"):
                    reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
                    writer.write(f"GET /5 HTTP/1.1\r\nHost: a\r\n{ending}\r\n".encode())
                    await reader.readuntil(b"\r\n\r\nxxxxx")
                    writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
                writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf")
                await reader.readuntil(b"\r\n\r\nxx")
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
                writer.write(b"GET / HTTP")
                await asyncio.sleep(0.01)
                writer.close()
                await gone(serving)
                assert [each for each in gc.get_objects() if isinstance(each, Protocol)] == []
            finally:
                gc.enable()

    async def gone(serving: Serving) -> None:
        while serving.worker.nr_conns:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # their tasks come to their end

    uvloop.run(scenario())
