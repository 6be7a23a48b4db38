"""The front as a process: real gunicorn, real sockets, clients that behave and clients that do not."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from container.wire import messages as m

from .conftest import LIMIT_BYTES, Front
from .double import Engine, Running


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def request(path: str, body: bytes = b"", method: str = "POST", **headers: str) -> bytes:
    """Return one raw request; Content-Length unless ``headers`` frames the body itself."""
    lines = [f"{method} {path} HTTP/1.1", "Host: berth"]
    if not {"Content_Length", "Transfer_Encoding"} & set(headers):
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def read_answer(stream: socket.socket, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Return (status, headers, body) of one answer and not a byte more."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        got = stream.recv(1)
        assert got, f"the connection ended after {raw!r}"
        raw += got
    first, *lines = raw.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
    body = b""
    while not head and len(body) < int(headers.get("content-length", 0)):
        body += stream.recv(int(headers["content-length"]) - len(body))
    return int(first.split(" ")[1]), headers, body


def invokes(engine: Engine) -> list[m.Invoke]:
    return [each for each in engine.seen if isinstance(each, m.Invoke)]


def test_an_invoke_carries_bytes_and_headers_to_the_engine_and_back(engine: Engine, client: httpx.Client) -> None:
    headers = {
        "Content-Type": "text/csv; charset=utf-8",
        "Accept": "text/csv;q=0.5",
        "X-Amzn-SageMaker-Inference-Id": "id-7",
        "X-Amzn-SageMaker-Custom-Attributes": "task=a",
        "X-Amzn-SageMaker-Target-Model": "other.tar.gz",
        "X-Other": "is dropped",
    }
    answer = client.post("/models/echo/invoke", content=b"\x00\xff1,2", headers=headers)
    (seen,) = invokes(engine)
    payload = seen.payload
    assert (seen.model, payload.body, payload.content_type) == ("echo", b"\x00\xff1,2", "text/csv; charset=utf-8")
    assert (payload.accept, payload.request_id, payload.attributes) == ("text/csv;q=0.5", "id-7", "task=a")
    assert payload.headers == {"x-amzn-sagemaker-target-model": "other.tar.gz"}
    assert 50 < seen.deadline - time.monotonic() <= 60
    assert (answer.status_code, answer.content) == (200, b"\x00\xff1,2")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["x-amzn-sagemaker-inference-id"] == "id-7"


def test_invocations_asks_for_the_model_without_a_name(engine: Engine, client: httpx.Client) -> None:
    assert client.post("/invocations", content=b"x", headers={"Content-Type": "text/plain"}).status_code == 200
    assert [each.model for each in invokes(engine)] == [""]


@pytest.mark.parametrize("path", ["/models/e%63ho/invoke", "/models/%65%63%68%6F/invoke"])
def test_a_percent_encoded_name_is_decoded(path: str, engine: Engine, client: httpx.Client) -> None:
    assert client.post(path, content=b"x").status_code == 200
    assert [each.model for each in invokes(engine)] == ["echo"]


def test_a_body_over_the_limit_is_refused_before_it_is_sent(front: Front, engine: Engine) -> None:
    with front.connect() as stream:
        stream.sendall(request("/models/echo/invoke", Content_Length=str(LIMIT_BYTES + 1)))
        status, headers, body = read_answer(stream)
        assert (status, headers["connection"]) == (413, "close")
        assert b'"reason":"request.too_large"' in body
        assert stream.recv(1) == b"", "the connection ends"
    assert engine.seen == []


def test_a_client_that_sends_all_of_a_body_over_the_limit_still_reads_the_413(
    engine: Engine, client: httpx.Client
) -> None:
    answer = client.post("/models/echo/invoke", content=b"x" * (20 * LIMIT_BYTES))
    assert (answer.status_code, answer.json()["type"]) == (413, "RequestEntityTooLargeException")
    assert engine.seen == []


def test_a_body_of_just_the_limit_is_taken(client: httpx.Client) -> None:
    assert client.post("/models/echo/invoke", content=b"x" * LIMIT_BYTES).content == b"x" * LIMIT_BYTES


def test_a_chunked_body_arrives_whole(engine: Engine, client: httpx.Client) -> None:
    answer = client.post("/models/echo/invoke", content=iter([b"a" * 70_000, b"b", b"", b"c" * 70_000]))
    assert answer.content == b"a" * 70_000 + b"b" + b"c" * 70_000
    assert len(invokes(engine)) == 1


def test_a_chunked_body_is_refused_when_it_grows_over_the_limit(engine: Engine, client: httpx.Client) -> None:
    answer = client.post("/models/echo/invoke", content=(b"x" * 65536 for _ in range(40)))
    assert (answer.status_code, answer.json()["reason"]) == (413, "request.too_large")
    assert engine.seen == []


def test_hanging_up_in_mid_body_asks_nothing_of_the_engine_and_returns_the_budget(
    front: Front, engine: Engine, client: httpx.Client
) -> None:
    for _ in range(80):  # 80 MiB declared; the budget is 64
        with front.connect() as stream:
            stream.sendall(request("/models/echo/invoke", b"x" * 1000, Content_Length=str(LIMIT_BYTES)))
    until(lambda: client.post("/models/echo/invoke", content=b"x").status_code == 200)
    assert {each.payload.body for each in invokes(engine)} == {b"x"}


def test_a_full_budget_is_refused_at_once_and_empties_again(front: Front, engine: Engine, client: httpx.Client) -> None:
    streams = [front.connect() for _ in range(64)]
    try:
        for stream in streams:
            stream.sendall(request("/models/echo/invoke", Content_Length=str(LIMIT_BYTES)))

        def refused() -> bool:
            return client.post("/models/echo/invoke", content=b"x").status_code == 503

        until(refused)
        answer = client.post("/models/echo/invoke", content=b"x")
        assert (answer.json()["reason"], answer.headers["retry-after"]) == ("server.queue_full", "1")
        assert client.get("/ping").status_code == 200
    finally:
        for stream in streams:
            stream.close()
    until(lambda: client.post("/models/echo/invoke", content=b"x").status_code == 200)


def test_hanging_up_while_the_model_works_cancels_the_request(front: Front, engine: Engine) -> None:
    with front.connect() as stream:
        stream.sendall(request("/models/never_answers/invoke", b"x"))
        until(lambda: engine.held)
    until(lambda: any(isinstance(each, m.Cancel) for each in engine.seen))
    assert [each.id for each in engine.seen if isinstance(each, m.Cancel)] == [engine.held[0][0].id]


def test_a_load_goes_on_when_its_caller_hangs_up(front: Front, engine: Engine) -> None:
    with front.connect() as stream:
        stream.sendall(request("/models", b'{"model_name": "slow_one", "url": "/m"}'))
        until(lambda: engine.seen)
    until(lambda: engine.models)
    assert engine.models == {"slow_one": "/m"}


def test_a_connection_is_kept_after_large_bodies(front: Front) -> None:
    body = b"y" * (LIMIT_BYTES - 7)
    with front.connect() as stream:
        for _ in range(5):
            stream.sendall(request("/models/echo/invoke", body))
            status, headers, answer = read_answer(stream)
            assert (status, answer, headers.get("connection")) == (200, body, None)


def test_ten_pipelined_requests_are_answered_in_order(front: Front) -> None:
    with front.connect() as stream:
        stream.sendall(b"".join(request("/models/echo/invoke", b"%d" % n) for n in range(10)))
        assert [read_answer(stream)[2] for _ in range(10)] == [b"%d" % n for n in range(10)]


def test_the_connection_is_kept_after_an_error_whose_body_was_there(front: Front) -> None:
    with front.connect() as stream:
        for path, status in [("/models/unknown/invoke", 404), ("/nowhere", 404), ("/ping", 405)]:
            stream.sendall(request(path, b"small"))
            assert read_answer(stream)[0] == status
        stream.sendall(request("/models/echo/invoke", b"x"))
        assert read_answer(stream)[2] == b"x"


def test_head_is_answered_like_get_without_the_body(front: Front, engine: Engine) -> None:
    engine.models["a"] = "/m"
    with front.connect() as stream:
        for path in ("/ping", "/models", "/models/a", "/models/unknown", "/metrics", "/openapi.json"):
            stream.sendall(request(path, method="GET"))
            get = read_answer(stream)
            stream.sendall(request(path, method="HEAD"))
            head = read_answer(stream, head=True)
            assert head[0] == get[0]
            assert head[1]["content-type"] == get[1]["content-type"]
            if path != "/metrics":
                assert head[1]["content-length"] == get[1]["content-length"]
        stream.sendall(request("/models/a/invoke", method="HEAD"))
        status, headers, _ = read_answer(stream, head=True)
        assert (status, headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (request("/models/echo/invoke", b"xx", Content_Length="2\r\nContent-Length: 2"), 400),
        (request("/models/echo/invoke", b"xx", Content_Length="2\r\nContent-Length: 3"), 400),
        (request("/models/echo/invoke", b"0\r\n\r\n", Content_Length="5\r\nTransfer-Encoding: chunked"), 400),
        (request("/models/echo/invoke", b"x", Content_Length="-1"), 400),
        (request("/models/echo/invoke", b"x", Content_Length="1e3"), 400),
        (request("/models/echo/invoke", b"zz\r\n", Transfer_Encoding="chunked"), 400),
        (request("/models/echo/invoke", b"x", Transfer_Encoding="br"), 501),
        (request("/models/echo/invoke", b"x", Content_Type="a\r\nContent-Type: b"), 400),
        (request("/models/echo/invoke", b"x", Bad_Header="a\x01b"), 400),
        (request("/" + "x" * 9000, b"x"), 414),
        (request("/ping", b"x", Long="x" * 9000), 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /ping\r\n\r\n", 400),
    ],
)
def test_malformed_http_is_refused_in_our_shape_and_the_connection_ends(
    raw: bytes, status: int, front: Front, engine: Engine
) -> None:
    with front.connect() as stream:
        stream.sendall(raw)
        got, headers, body = read_answer(stream)
        assert (got, headers["content-type"], headers["connection"]) == (status, "application/json", "close")
        assert b'"reason":"request.malformed"' in body
        assert stream.recv(1) == b""
    assert engine.seen == []


def test_what_a_model_puts_into_headers_cannot_split_the_answer(front: Front) -> None:
    with front.connect() as stream:
        stream.sendall(request("/models/splits_the_answer/invoke", b"x", X_Amzn_SageMaker_Inference_Id="a\tb"))
        status, headers, body = read_answer(stream)
        headers.pop("date")
        assert (status, body) == (200, b"body")
        evil = "a  X-Evil: 1    <html>"
        assert headers == {
            "content-type": "text/plain" + evil,
            "content-length": "4",
            "x-amzn-sagemaker-inference-id": "a\tb",
            "x-amzn-sagemaker-custom-attributes": evil,
            "x-fine": "yes",
            "x-split": evil,
            "x-snowman": "",
            "server": "gunicorn/asgi",
        }
        stream.sendall(request("/ping", method="GET"))
        assert read_answer(stream)[0] == 200, "and the connection is still in step"


@pytest.mark.parametrize(
    ("model", "status", "body"),
    [
        ("says_teapot", 418, b"short and stout"),
        ("has_nothing_to_say", 204, b""),
        ("invents_a_status", 200, b"ok"),
    ],
)
def test_an_author_s_status_is_used_if_it_is_one(model: str, status: int, body: bytes, client: httpx.Client) -> None:
    answer = client.post(f"/models/{model}/invoke", content=b"x")
    assert (answer.status_code, answer.content) == (status, body)


def test_failures_of_the_engine_come_out_with_their_status_and_the_request_s_id(client: httpx.Client) -> None:
    answer = client.post("/models/is_busy/invoke", content=b"x", headers={"X-Amzn-SageMaker-Inference-Id": "me"})
    expected = {"code": 503, "type": "ServiceUnavailableException", "message": "try again", "reason": "memory.busy"}
    assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (503, expected, "3")
    assert answer.headers["x-amzn-sagemaker-inference-id"] == "me"
    answer = client.post("/models/fails_with_its_own_code/invoke", content=b"x")
    assert (answer.status_code, answer.json()["code"], answer.json()["reason"]) == (422, 422, "model.failed")
    assert re.fullmatch(r"[0-9a-f]{10}-[0-9a-f]+", answer.headers["x-amzn-sagemaker-inference-id"])


def test_three_hundred_requests_at_a_time_each_get_their_own_answer(front: Front) -> None:
    async def all_of_them() -> list[bytes]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=front.url, limits=limits, timeout=30) as client:
            posts = (client.post("/models/echo/invoke", content=b"%d" % n * (n * 50)) for n in range(1, 301))
            return [answer.content for answer in await asyncio.gather(*posts)]

    assert asyncio.run(all_of_them()) == [b"%d" % n * (n * 50) for n in range(1, 301)]


def test_a_large_answer_arrives_whole(client: httpx.Client) -> None:
    assert client.post("/models/answers_a_lot/invoke", content=b"8000000").content == b"x" * 8_000_000


def test_expect_100_continue_is_told_the_refusal_instead(front: Front, engine: Engine) -> None:
    with front.connect() as stream:
        stream.sendall(request("/models/echo/invoke", Content_Length=str(LIMIT_BYTES + 1), Expect="100-continue"))
        assert read_answer(stream)[0] == 413
    with front.connect() as stream:
        stream.sendall(request("/models/echo/invoke", Content_Length="2", Expect="100-continue"))
        assert read_answer(stream)[0] == 100
        stream.sendall(b"ok")
        assert read_answer(stream)[::2] == (200, b"ok")


def test_the_pages_show_what_the_engine_knows(front: Front, engine: Engine, client: httpx.Client) -> None:
    engine.models["a<b"] = "/models/<x>"
    assert client.post("/models/echo/invoke", content=b"x").status_code == 200
    home = client.get("/").text
    assert "a&lt;b" in home
    assert "ready on cpu" in home
    assert "<td><code>POST /models/{model_name}/invoke</code>" in client.get("/docs").text
    assert client.get("/openapi.json").json()["openapi"] == "3.1.0"
    metrics = client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=")
    assert 'berth_models{tier="device"} 3.0' in metrics.text
    assert 'berth_http_requests_total{code="200",route="invoke_model"}' in metrics.text
    assert engine.counted["invoke_model", 200] >= 1
    answer = client.post("/metrics")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_the_counts_reach_the_engine_by_themselves(engine: Engine, client: httpx.Client) -> None:
    before = engine.counted.get(("none", 404), 0)
    assert client.get("/nowhere").status_code == 404
    until(lambda: engine.counted.get(("none", 404), 0) == before + 1)


def test_the_engine_may_die_and_come_back(tmp_path: Path) -> None:
    front = Front(tmp_path)
    try:
        with Running(front.socket_path) as engine:
            front.start().wait_healthy()
            got: list[httpx.Response] = []
            ask = threading.Thread(
                target=lambda: got.append(
                    httpx.post(f"{front.url}/models/never_answers/invoke", content=b"x", timeout=60)
                )
            )
            ask.start()
            until(lambda: engine.held)
        ask.join(10)
        assert (got[0].status_code, got[0].json()["reason"]) == (503, "server.restarting")
        answer = httpx.post(f"{front.url}/models/echo/invoke", content=b"x", timeout=60)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert httpx.get(f"{front.url}/models", timeout=60).status_code == 503
        assert httpx.get(f"{front.url}/ping", timeout=60).status_code == 200, "for half a minute"
        metrics = httpx.get(f"{front.url}/metrics", timeout=60).text
        assert "berth_engine_up 0.0" in metrics
        assert 'berth_http_requests_total{code="503",route="invoke_model"} 2.0' in metrics
        with Running(front.socket_path):
            until(lambda: httpx.post(f"{front.url}/models/echo/invoke", content=b"x", timeout=60).status_code == 200)
    finally:
        front.stop()


def test_ping_tells_what_the_supervisor_wrote(front: Front, client: httpx.Client) -> None:
    note = front.run_dir / "unhealthy"
    note.write_text("the engine died 4 times")
    try:
        answer = client.get("/ping")
        assert (answer.status_code, answer.json()["reason"]) == (503, "the engine died 4 times")
    finally:
        note.unlink()
    assert client.get("/ping").json() == {"status": "Healthy"}


def test_ping_waits_for_the_models_that_the_server_was_started_with(tmp_path: Path) -> None:
    model = tmp_path / "ml" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    front = Front(tmp_path, SAGEMAKER_MULTI_MODEL="false")
    try:
        with Running(front.socket_path) as engine:
            engine.state = m.LOADING
            front.start()
            until(lambda: "being loaded" in httpx.get(f"{front.url}/ping", timeout=60).text)
            assert httpx.get(f"{front.url}/models", timeout=60).status_code == 200
            engine.state = "ready"
            front.wait_healthy()
            engine.state = m.LOADING
            assert httpx.get(f"{front.url}/ping", timeout=60).status_code == 200, "that it was ready is remembered"
    finally:
        front.stop()


def test_sigterm_lets_what_runs_finish_and_is_not_held_up_by_idle_connections(tmp_path: Path) -> None:
    front = Front(tmp_path)
    with Running(front.socket_path) as engine:
        front.start().wait_healthy()
        with front.connect() as idle, front.connect() as silent, front.connect() as busy:
            idle.sendall(request("/ping", method="GET"))
            assert read_answer(idle)[0] == 200
            busy.sendall(request("/models/never_answers/invoke", b"x"))
            until(lambda: engine.held)
            front.process.terminate()
            assert idle.recv(1) == b"", "an idle connection is closed at once"
            assert silent.recv(1) == b""

            def refused() -> bool:
                try:
                    front.connect().close()
                except ConnectionRefusedError:
                    return True
                return False

            until(refused)
            assert front.process.poll() is None
            engine.release(b"late")
            status, headers, body = read_answer(busy)
            assert (status, body, headers["connection"]) == (200, b"late", "close")
            assert front.process.wait(10) == 0
    assert [line for line in front.log_lines() if line["level"] in ("error", "warning")] == []


def test_a_crowd_that_comes_at_once_is_let_in_without_a_second_try(front: Front) -> None:
    (worker,) = psutil.Process(front.process.pid).children()
    crowd: list[socket.socket] = []
    worker.send_signal(signal.SIGSTOP)  # nobody accepts: who finds no room in the kernel's queue is never connected
    try:
        for _ in range(400):
            crowd.append(socket.create_connection(("127.0.0.1", front.port), timeout=10))
    finally:
        worker.send_signal(signal.SIGCONT)
        for each in crowd:
            each.close()
    assert len(crowd) == 400
    assert httpx.get(f"{front.url}/ping", timeout=60).status_code == 200
