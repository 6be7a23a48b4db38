"""More than the server can do: refused at once, before the body, in bounded memory, and over when it is over."""

from __future__ import annotations

import concurrent.futures
import http.client as http_client
import resource
import selectors
import socket
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from tests.server import Server, running, until, write_handler

SLOW = """
import time
from container.handler import Handler

class Slow(Handler):
    def predict(self, batch):
        time.sleep(0.02 * len(batch))
        return batch
"""

#: Answers once the file is there.
HELD = """
import os, time
from container.handler import Handler

class Held(Handler):
    def predict(self, batch):
        while not os.path.exists("GO_ON"):
            time.sleep(0.01)
        return batch
"""


@pytest.fixture
def slow(server: Server) -> Server:
    """The server that this module's tests share, with the model ``slow``."""
    if "slow" not in server.names():
        write_handler(server.folder("slow"), SLOW)
        server.load("slow").raise_for_status()
    return server


def ask(server: Server, name: str, http: httpx.Client) -> tuple[int, float, httpx.Response]:
    started = time.monotonic()
    answer = http.post(f"/models/{name}/invoke", json=[1])
    return answer.status_code, time.monotonic() - started, answer


def begun(server: Server, head: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    sock.sendall(head.encode())
    return sock


def crowd(server: Server, count: int, said: bytes) -> list[socket.socket]:
    """``count`` connections made at the same time, each of which says ``said`` and no more."""
    socks = [socket.socket() for _ in range(count)]
    waiting = selectors.DefaultSelector()
    for sock in socks:
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", server.port))
        waiting.register(sock, selectors.EVENT_WRITE)
    deadline = time.monotonic() + 60
    while waiting.get_map():
        assert time.monotonic() < deadline
        for key, _ in waiting.select(1):
            waiting.unregister(key.fileobj)
            try:
                key.fileobj.send(said)  # type: ignore[union-attr]
            except OSError:  # it had to make way already
                continue
    waiting.close()
    return socks


def heard(sock: socket.socket) -> bytes:
    answer = b""
    while b"\r\n\r\n" not in answer and (data := sock.recv(65536)):
        answer += data
    return answer


def in_flight(server: Server) -> float:
    """Requests that the engine has taken in and not answered yet."""
    text = server.http.get("/metrics").text
    return float(text.partition("\nberth_requests_in_flight ")[2].split("\n")[0])


def test_a_full_queue_is_told_before_the_body_is_sent_and_other_models_are_served(tmp_path: Path) -> None:
    with running(tmp_path, BERTH_QUEUE_LENGTH="3") as server:
        go_on = tmp_path / "go on"
        write_handler(server.folder("held"), HELD.replace("GO_ON", str(go_on)), batch={"max_size": 1})
        write_handler(server.folder("other"), SLOW)
        for name in ("held", "other"):
            server.load(name).raise_for_status()
        with concurrent.futures.ThreadPoolExecutor(3) as pool, httpx.Client(base_url=server.http.base_url) as http:
            first = [pool.submit(server.invoke, "held", [number]) for number in range(3)]
            deadline = time.monotonic() + 40
            while in_flight(server) < 3 and time.monotonic() < deadline:
                time.sleep(0.02)
            sock = begun(server, "POST /models/held/invoke HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n")
            answer = heard(sock)
            sock.close()
            assert b" 503 " in answer.split(b"\r\n")[0]
            assert b"retry-after: " in answer.lower()
            assert b"server.queue_full" in answer or b"content-length" in answer.lower()
            assert ask(server, "other", http)[0] == 200
            go_on.touch()
            assert [answer.result().json() for answer in first] == [[0], [1], [2]]
            assert ask(server, "held", http)[0] == 200


def test_what_cannot_be_answered_in_its_time_is_refused_at_once_and_the_rest_comes_in_time(tmp_path: Path) -> None:
    """Ten times what the model can do; a caller may wait 1 s."""
    with running(tmp_path) as server:
        write_handler(server.folder("slow"), SLOW, timeout_s=1.0, batch={"max_size": 1})
        server.load("slow").raise_for_status()
        codes: Counter[int] = Counter()
        pings: list[float] = []
        until = time.monotonic() + 5

        def caller(_: int) -> None:
            http = http_client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            while time.monotonic() < until:
                http.request("POST", "/models/slow/invoke", b"[1]")
                answer = http.getresponse()
                answer.read()
                codes[answer.status] += 1
                if answer.status == 503:
                    assert int(answer.headers["retry-after"]) >= 1
                    time.sleep(0.05)
            http.close()

        def pinger() -> None:
            with httpx.Client(base_url=server.http.base_url, timeout=30) as http:
                while time.monotonic() < until:
                    started = time.monotonic()
                    assert http.get("/ping").status_code == 200
                    pings.append(time.monotonic() - started)
                    time.sleep(0.01)

        with concurrent.futures.ThreadPoolExecutor(81) as pool:
            work = [pool.submit(caller, number) for number in range(80)] + [pool.submit(pinger)]
            for each in work:
                each.result()
        assert set(codes) <= {200, 503, 504}, codes
        assert codes[503] > codes[200] > codes[504], codes  # how many are late is a figure of bench/rows/overload
        assert server.invoke("slow", [1]).status_code == 200
        print(codes, f"ping p99 {sorted(pings)[int(0.99 * len(pings))] * 1e3:.0f} ms")


def test_thousands_of_idle_connections_and_slow_headers_keep_nobody_out(slow: Server) -> None:
    """10,000 silent connections where descriptors allow them; memory stays bounded and callers are served."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(10_000, hard - 2_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    silent: list[socket.socket] = []
    try:
        before = memory(slow)
        for number in range(count // 1000):
            silent += crowd(slow, 1000, b"GET /ping HTTP/1.1\r\nHost: x\r\nX: " if number % 2 else b"")
            with httpx.Client(base_url=slow.http.base_url, timeout=20) as http:
                assert http.get("/ping").status_code == 200
                assert ask(slow, "slow", http)[0] == 200
        assert memory(slow) - before < 400 << 20
        assert ask(slow, "slow", slow.http)[0] == 200
        front = max((process for process in slow.family()), key=lambda process: process.num_fds())
        assert front.num_fds() < 2_500
    finally:
        for sock in silent:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_largest_bodies_on_all_connections_take_bounded_memory(slow: Server) -> None:
    body = b'"' + b"x" * (20 << 20) + b'"'
    before = memory(slow)
    peaks: list[int] = []

    def caller(_: int) -> int:
        with httpx.Client(base_url=slow.http.base_url, timeout=60) as http:
            try:
                return http.post("/models/slow/invoke", content=body).status_code
            except httpx.TransportError:  # refused while it was still sending
                return 503

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        calls = [pool.submit(caller, number) for number in range(24)]
        while not all(call.done() for call in calls):
            peaks.append(memory(slow))
            time.sleep(0.05)
    codes = Counter(call.result() for call in calls)
    assert set(codes) <= {200, 503}, codes
    assert codes[200] >= 4, codes
    assert max(peaks) - before < 1200 << 20, (codes, max(peaks) - before)
    assert slow.invoke("slow", [1]).json() == [1]


def test_callers_that_hang_up_leave_nothing_behind(slow: Server, tmp_path: Path) -> None:
    """Their sockets are closed and their requests dropped while the model is still held, not when it would answer."""
    go_on = tmp_path / "go on"
    write_handler(slow.folder("held"), HELD.replace("GO_ON", str(go_on)), batch={"max_size": 1})
    slow.load("held").raise_for_status()
    asked = "POST /models/held/invoke HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n[1]"
    fds = sum(process.num_fds() for process in slow.family())
    for round_ in range(10):
        socks = [begun(slow, asked if number % 2 else asked[:60]) for number in range(50)]
        time.sleep(0.02 * (round_ % 3))
        for sock in socks:
            sock.close()
    until(lambda: in_flight(slow) == 0, 40)  # at 50 s they would be answered 504
    until(lambda: sum(process.num_fds() for process in slow.family()) <= fds + 5, 40)
    assert not go_on.exists()
    go_on.touch()
    assert ask(slow, "held", slow.http)[0] == 200
    slow.unload("held").raise_for_status()


def memory(server: Server) -> int:
    """Bytes of RAM that the server's processes have to themselves."""
    total = 0
    for process in server.family():
        try:
            total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total
