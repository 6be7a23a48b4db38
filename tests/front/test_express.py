"""The short way of ordinary invocations gives what gunicorn's way gives: held one against the other."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from gunicorn.asgi.parser import PythonProtocol
from hypothesis import example, given
from hypothesis import strategies as st

from container.front import routes, worker
from container.front.asgi import App, create_app
from container.front.express import HUNG_UP, plain
from container.settings import Settings
from container.wire import messages as m
from container.wire.client import Client

from .double import Engine, Running
from .test_worker import Serving

HEAD = "POST /models/echo/invoke HTTP/1.1\r\nHost: a\r\n"

_LINES = st.sampled_from(
    [
        *(
            "Host: a",
            "Accept: */*",
            "ACCEPT:\ttext/csv ",
            "X-Amzn-SageMaker-Custom-Attributes: a, b",
            "X-Long: " + "y" * 5000,
        ),
        *("Content-Length: 3", "content-length:3", "Content-Length: 03", "Content-Length: 2", "Content-Length: +3"),
        *(
            "Content-Length: 3_0",
            "Content-Length: ",
            "Connection: keep-alive",
            "Connection: close",
            "Connection: Upgrade",
        ),
        *("Transfer-Encoding: chunked", "Transfer-Encoding: identity", "Expect: 100-continue", "Upgrade: h2c"),
        *(
            "Content-Encoding: gzip",
            "X_Under: score",
            "Bad Name: 1",
            "Space : 1",
            " folded: 1",
            "no colon",
            ": empty",
            "",
        ),
        *("X-Nul: a\0b", "X-Bare: a\nb", "X-CR: a\rb", "X-High: \xe9", "X-Del: \x7f", "X-Forwarded-Proto: https"),
    ]
)
_ORDINARY = "POST /models/echo/invoke HTTP/1.1"
_FIRST = st.just(_ORDINARY) | st.sampled_from(
    [
        *(_ORDINARY, "POST /invocations HTTP/1.1", "POST /models/a.b-c_D/invoke HTTP/1.1"),
        *("POST /models/../invoke HTTP/1.1", "POST /models//invoke HTTP/1.1", "POST /models/a/b/invoke HTTP/1.1"),
        *("POST /models/%61/invoke HTTP/1.1", "POST /invocations?a=b HTTP/1.1", "POST /models/a/invoke HTTP/1.0"),
        *("GET /invocations HTTP/1.1", "post /invocations HTTP/1.1", "POST  /invocations HTTP/1.1"),
        *("POST http://a/invocations HTTP/1.1", "POST /invocations HTTP/1.1 ", "POST /invocations"),
    ]
)
_BODIES = st.sampled_from(["", "abc", "abcd", "ab", "{}\n", "POST /invocations HTTP/1.1\r\n\r\n"])


@given(_FIRST, st.lists(_LINES, max_size=4), _BODIES, st.booleans())
@example("POST /invocations HTTP/1.1", ["Host: a", "Content-Length: 3"], "abc", False)
def test_what_the_short_way_takes_gunicorn_would_read_in_the_same_way(
    first: str, lines: list[str], body: str, framed: bool
) -> None:
    framing = [f"Content-Length: {len(body)}"] if framed else []
    data = "\r\n".join([first, *lines, *framing, "", body]).encode("latin-1")
    taken = plain(data)
    if taken is None:
        return
    read: list[bytes] = []
    parser = PythonProtocol(on_body=read.append)
    parser.feed(data)
    assert (parser.is_complete, parser.remaining(), parser.should_keep_alive) == (True, b"", True)
    assert (parser.is_chunked, parser.http_version) == (False, (1, 1))
    assert (list(taken.fields.items()), taken.body) == (parser.headers, b"".join(read))
    assert all(b"_" not in name for name in taken.fields)
    operation, name = routes.match(parser.path, parser.method.decode())
    assert (operation, name) == (routes.INVOKE if taken.model else routes.INVOCATIONS, taken.model)


@pytest.mark.parametrize("cut", [1, 30, 60, -1])
def test_a_request_that_has_not_come_whole_and_two_at_once_are_not_ordinary(cut: int) -> None:
    data = f"{HEAD}Content-Length: 3\r\n\r\nabc".encode()
    assert plain(data) is not None
    assert plain(data[:cut]) is None
    assert plain(data + data) is None


class Ways:
    """A front with both ways on two ports; ``asked`` counts what went through ASGI on the first."""

    def __init__(self, folder: Path, socket_path: Path) -> None:
        settings = {"SAGEMAKER_MULTI_MODEL": "true", "BERTH_STATE_DIR": str(folder), "SAGEMAKER_BASE_DIR": str(folder)}
        self.client = Client(str(socket_path), "test")
        self.app: App = create_app(self.client, Settings.read(settings))
        self.short, self.long = Serving(), Serving()
        self.asked = 0

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            self.asked += 1
            await self.app(scope, receive, send)

        counted.express = self.app.express  # type: ignore[attr-defined]
        self.short.worker.asgi = counted
        self.long.worker.asgi = lambda scope, receive, send: self.app(scope, receive, send)

    async def __aenter__(self) -> Ways:
        await self.client.connect()
        await self.short.__aenter__()
        await self.long.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.short.__aexit__()
        await self.long.__aexit__()
        self.client.close()

    def open(self) -> Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        return asyncio.open_connection("127.0.0.1", self.short.port)


def on_both_ways(folder: Path, scenario: Callable[[Ways, Engine], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Ways(folder, folder / "e.sock") as ways:
            await asyncio.wait_for(scenario(ways, engine), 30)

    with Running(folder / "e.sock") as engine:
        uvloop.run(run())


def invocation(model: str, body: bytes = b"abc", *fields: str) -> bytes:
    lines = [f"POST /models/{model}/invoke HTTP/1.1", "Host: a", "X-Amzn-SageMaker-Inference-Id: 7", *fields]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def answer(reader: asyncio.StreamReader) -> bytes:
    """Return one whole answer, its Date left out."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    if b"transfer-encoding: chunked" in head:
        body = await reader.readuntil(b"0\r\n\r\n")
    else:
        body = await reader.readexactly(int(length[1])) if length is not None else b""
    return re.sub(rb"Date: [^\r]*\r\n", b"", head) + body


def test_both_ways_give_the_same_bytes_and_the_connection_lives_on(tmp_path: Path) -> None:
    requests = [
        *(invocation(model) for model in ("echo", "unknown", "is_busy", "says_teapot", "invents_a_status")),
        *(invocation(model) for model in ("has_nothing_to_say", "splits_the_answer", "fails_with_its_own_code")),
        *(invocation(model, b"a b c") for model in ("tells_word_by_word", "echo")),
        invocation("answers_a_lot", b"3000000"),
        invocation("echo", b"x" * 100_000, "Content-Type: image/png", "Accept: a/b", "X-Amzn-SageMaker-Other: 1"),
        invocation("echo", b""),
    ]

    async def scenario(ways: Ways, engine: Engine) -> None:
        got = []
        for serving in (ways.short, ways.long):
            reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
            await asyncio.sleep(0.01)
            answers = []
            for request in requests:
                writer.write(request)
                answers.append(await answer(reader))
            got.append((answers, [each.payload for each in engine.seen if isinstance(each, m.Invoke)]))
            engine.seen.clear()
            writer.close()
        assert got[0] == got[1]
        assert ways.asked < len(requests), "none went the short way"

    on_both_ways(tmp_path, scenario)


def test_an_ordinary_invocation_does_not_pass_through_asgi_and_is_counted(tmp_path: Path) -> None:
    async def scenario(ways: Ways, engine: Engine) -> None:
        reader, writer = await ways.open()
        await asyncio.sleep(0.01)
        for _ in range(3):
            writer.write(invocation("echo"))
            assert (await answer(reader)).endswith(b"\r\n\r\nabc")
        assert (ways.asked, ways.app.requests.totals()) == (0, {(routes.INVOKE, 200): 3})
        assert (len(ways.app.flights), ways.app.budget.used_bytes) == (0, 0)
        writer.close()

    on_both_ways(tmp_path, scenario)


def test_what_is_sent_early_is_answered_in_order_whatever_its_form(tmp_path: Path) -> None:
    async def scenario(ways: Ways, engine: Engine) -> None:
        reader, writer = await ways.open()
        await asyncio.sleep(0.01)
        writer.write(invocation("never_answers"))
        while not engine.held:
            await asyncio.sleep(0.01)
        for body in (b"1", b"2"):
            writer.write(invocation("echo", body))
        writer.write(b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n" + invocation("tells_word_by_word", b"3 4"))
        await asyncio.sleep(0.05)
        engine.release(b"first")
        bodies = [(await answer(reader)).partition(b"\r\n\r\n")[2] for _ in range(5)]
        assert bodies[:3] == [b"first", b"1", b"2"]
        assert bodies[4].endswith(b"0\r\n\r\n")
        writer.close()

    on_both_ways(tmp_path, scenario)


def test_hanging_up_tells_the_engine_and_gives_everything_back(tmp_path: Path) -> None:
    async def scenario(ways: Ways, engine: Engine) -> None:
        _, writer = await ways.open()
        await asyncio.sleep(0.01)
        writer.write(invocation("never_answers"))
        while not engine.held:
            await asyncio.sleep(0.01)
        writer.close()
        while not any(isinstance(each, m.Cancel) for each in engine.seen):
            await asyncio.sleep(0.01)
        assert (len(ways.app.flights), ways.app.budget.used_bytes) == (0, 0)
        assert ways.app.requests.totals() == {(routes.INVOKE, HUNG_UP): 1}

    on_both_ways(tmp_path, scenario)


def test_a_model_that_never_answers_is_a_504_on_the_short_way_too(tmp_path: Path) -> None:
    async def scenario(ways: Ways, engine: Engine) -> None:
        reader, writer = await ways.open()
        await asyncio.sleep(0.01)
        writer.write(invocation("never_answers"))
        while not engine.held:
            await asyncio.sleep(0.01)
        ways.app.flights.sweep(time.monotonic() + 61)
        assert (await answer(reader)).startswith(b"HTTP/1.1 504 ")
        while not any(isinstance(each, m.Cancel) for each in engine.seen):
            await asyncio.sleep(0.01)
        writer.write(invocation("echo"))
        assert (await answer(reader)).startswith(b"HTTP/1.1 200 "), "the connection lives on"
        assert (ways.asked, len(ways.app.flights), ways.app.budget.used_bytes) == (0, 0, 0)
        writer.close()

    on_both_ways(tmp_path, scenario)


def test_refusals_before_the_engine_is_asked_are_answered_at_once(tmp_path: Path) -> None:
    async def scenario(ways: Ways, engine: Engine) -> None:
        reader, writer = await ways.open()
        await asyncio.sleep(0.01)
        ways.app.budget.take(ways.app.budget.limit_bytes - 2)
        writer.write(invocation("echo"))
        assert (await answer(reader)).startswith(b"HTTP/1.1 503 ")
        ways.app.budget.give_back(ways.app.budget.limit_bytes - 2)
        ways.client.close()
        writer.write(invocation("echo"))
        assert (await answer(reader)).startswith(b"HTTP/1.1 200 ") is False
        assert (ways.asked, engine.seen) == (0, [])
        writer.close()

    on_both_ways(tmp_path, scenario)


def test_a_connection_on_the_short_way_is_kept_while_it_is_used_and_closed_when_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "FIRST_REQUEST_S", 0.05)

    async def scenario(ways: Ways, engine: Engine) -> None:
        ways.short.worker.cfg.set("keepalive", 1)
        reader, writer = await ways.open()
        await asyncio.sleep(0.01)
        writer.write(invocation("echo"))
        await answer(reader)
        await asyncio.sleep(0.2)
        writer.write(invocation("never_answers"))
        while not engine.held:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.2)
        engine.release(b"late")
        assert (await answer(reader)).endswith(b"late"), "a connection at work is not idle"
        assert await asyncio.wait_for(reader.read(), 10) == b""
        assert ways.asked == 0
        writer.close()

    on_both_ways(tmp_path, scenario)
