"""The application itself, without a server: deadlines, hanging up, faults of ours."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from pathlib import Path

import pytest

from container import log
from container.errors import ModelNotFound
from container.front import routes
from container.front.flights import Flights
from container.payload import Payload
from container.wire import messages as m

from .inside import Stub, app_with, ask


class Never:
    """A model that never answers; remembers that it was told to stop."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.cancelled = False

    async def __call__(self, model: str, payload: Payload, deadline: float) -> Payload:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        raise AssertionError


def test_a_model_that_never_answers_is_a_504_and_is_told_to_stop(tmp_path: Path) -> None:
    async def scenario() -> None:
        never = Never()
        app = app_with(Stub(never), tmp_path)
        app.flights = Flights(limit_s=0.01)
        request = asyncio.ensure_future(ask(app, "POST", "/models/a/invoke", b"x"))
        await never.asked.wait()
        app.flights.sweep(now=1e12)
        app.flights.sweep(now=1e12)
        got = await request
        assert (got.status, got.json["reason"], got.json["type"]) == (504, "model.timeout", "RequestTimeoutException")
        assert (never.cancelled, app.budget.used_bytes, len(app.flights)) == (True, 0, 0)

    asyncio.run(scenario())


def test_the_sweep_spares_requests_whose_time_is_not_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        never = Never()
        app = app_with(Stub(never), tmp_path)
        request = asyncio.ensure_future(ask(app, "POST", "/models/a/invoke", b"x"))
        await never.asked.wait()
        app.flights.sweep(now=asyncio.get_running_loop().time())
        await asyncio.sleep(0)
        assert not never.cancelled
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/models/a/invoke", "/models"])
def test_a_body_that_never_comes_is_a_408(path: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        app = app_with(Stub(), tmp_path)
        header = [("Content-Length", "10")]
        request = asyncio.ensure_future(ask(app, "POST", path, b"1", header, ends="stays_silent"))
        while not len(app.flights):
            await asyncio.sleep(0)
        assert app.budget.used_bytes == 10
        await asyncio.sleep(0)
        app.flights.sweep(now=1e12)
        got = await request
        assert (got.status, got.json["code"], got.json["reason"]) == (408, 408, "request.malformed")
        assert (app.budget.used_bytes, len(app.flights)) == (0, 0)

    asyncio.run(scenario())


def test_hanging_up_cancels_the_request_to_the_engine(tmp_path: Path) -> None:
    async def scenario() -> None:
        never = Never()
        app = app_with(Stub(never), tmp_path)
        request = asyncio.ensure_future(ask(app, "POST", "/models/a/invoke", b"x"))
        await never.asked.wait()
        assert app.budget.used_bytes == 1
        request.cancel()  # what gunicorn does when the connection is lost
        with pytest.raises(asyncio.CancelledError):
            await request
        assert (never.cancelled, app.budget.used_bytes, len(app.flights)) == (True, 0, 0)

    asyncio.run(scenario())


def test_hanging_up_in_mid_body_asks_nothing_of_the_engine(tmp_path: Path) -> None:
    async def scenario() -> None:
        never = Never()
        app = app_with(Stub(never), tmp_path)
        for headers in ([("Content-Length", "10")], [("Transfer-Encoding", "chunked")]):
            got = await ask(app, "POST", "/models/a/invoke", [b"1", b"2"], headers, ends="hangs_up")
            assert got.status == 408
        assert (never.asked.is_set(), app.budget.used_bytes, len(app.flights)) == (False, 0, 0)

    asyncio.run(scenario())


def test_a_fault_of_ours_is_a_fixed_text_outside_and_one_traceback_inside(tmp_path: Path) -> None:
    async def breaks(model: str, payload: Payload, deadline: float) -> Payload:
        raise ZeroDivisionError("secret")

    stream = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    log.configure("front", stream=stream)
    try:
        app = app_with(Stub(breaks), tmp_path)
        got = asyncio.run(ask(app, "POST", "/models/a/invoke", b"x", [("X-Amzn-SageMaker-Inference-Id", "r-1")]))
    finally:
        root.handlers[:], root.level = before
    assert (got.status, got.json["reason"], "secret" in got.body.decode()) == (500, "server.internal", False)
    assert got.headers["x-amzn-sagemaker-inference-id"] == "r-1"
    (line,) = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (line["level"], line["request_id"]) == ("error", "r-1")
    assert "ZeroDivisionError: secret" in line["traceback"]
    assert app.budget.used_bytes == 0


def test_a_compressed_body_is_refused_with_what_to_do(tmp_path: Path) -> None:
    got = asyncio.run(ask(app_with(Stub(), tmp_path), "POST", "/invocations", b"x", [("Content-Encoding", "gzip")]))
    assert (got.status, got.json["message"]) == (415, "Content-Encoding gzip is not read: send the body as it is")


def test_every_request_without_an_id_gets_one_of_its_own(tmp_path: Path) -> None:
    app = app_with(Stub(), tmp_path)
    got = [asyncio.run(ask(app, "POST", "/invocations", b"x")) for _ in range(20)]
    assert len({each.headers["x-amzn-sagemaker-inference-id"] for each in got}) == 20


def test_the_default_accept_is_the_setting_s(tmp_path: Path) -> None:
    seen: list[str] = []

    async def remembers(model: str, payload: Payload, deadline: float) -> Payload:
        seen.append(payload.accept)
        return payload

    app = app_with(Stub(remembers), tmp_path, SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT="text/csv")
    asyncio.run(ask(app, "POST", "/invocations", b"x", [("Accept", "*/*")]))
    assert seen == ["text/csv"]


def test_each_request_is_counted_once_by_what_came_of_it(tmp_path: Path) -> None:
    async def missing(model: str, payload: Payload, deadline: float) -> Payload:
        raise ModelNotFound("no")

    app = app_with(Stub(missing), tmp_path)
    for method, path in [
        ("GET", "/ping"),
        ("GET", "/ping"),
        ("POST", "/ping"),
        ("GET", "/x"),
        ("POST", "/invocations"),
    ]:
        asyncio.run(ask(app, method, path, b"x"))
    expected = {("ping", 200): 2, ("none", 405): 1, ("none", 404): 1, ("invocations", 404): 1}
    assert app.requests.totals() == expected
    counts = app.requests.take()
    assert counts is not None
    assert sorted(counts.requests) == sorted((*key, number) for key, number in expected.items())
    assert (app.requests.take(), app.requests.totals()) == (None, expected)


def test_there_is_a_function_for_every_operation_of_the_table(tmp_path: Path) -> None:
    operations = {operation for methods in routes.ROUTES.values() for operation in methods.values()}
    assert set(app_with(Stub(), tmp_path).operations) | {routes.PAGE} == operations


def test_the_lifespan_starts_the_background_work_and_ends_it_with_the_last_counts(tmp_path: Path) -> None:
    async def scenario() -> None:
        stub = Stub()
        app = app_with(stub, tmp_path)
        inbox: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        outbox: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        life = asyncio.ensure_future(app({"type": "lifespan"}, inbox.get, outbox.put))  # type: ignore[arg-type]
        await inbox.put({"type": "lifespan.startup"})
        assert await outbox.get() == {"type": "lifespan.startup.complete"}
        assert (await ask(app, "GET", "/ping")).status == 200
        await inbox.put({"type": "lifespan.shutdown"})
        assert await outbox.get() == {"type": "lifespan.shutdown.complete"}
        await life
        assert stub.counted == [("ping", 200, 1)]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_a_reply_of_the_wrong_kind_is_internal(tmp_path: Path) -> None:
    app = app_with(Stub(call=lambda request: m.Status(0, "odd")), tmp_path)
    for method, path in [("GET", "/models"), ("GET", "/models/a"), ("DELETE", "/models/a")]:
        got = asyncio.run(ask(app, method, path))
        assert (got.status, got.json["reason"]) == (500, "server.internal")
