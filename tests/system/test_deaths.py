"""kill -9 of each process under load: only what was in flight fails, everything answers again unasked."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.makers import tiny_bert
from tests.server import Server, running, write_handler

SLOW_ECHO = """
import time
from container.handler import Handler

class SlowEcho(Handler):
    batched = False  # of several callers one is always inside: in one batch they would all be between two calls at once

    def predict(self, batch):
        time.sleep(0.1)
        return batch
"""


class Load:
    """Callers that never stop asking; ``codes`` counts what they were told."""

    def __init__(self, server: Server, calls: list[Callable[[httpx.Client], httpx.Response]]) -> None:
        self.codes: Counter[int] = Counter()
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(server, call)) for call in calls for _ in range(3)]
        for thread in self._threads:
            thread.start()

    def _run(self, server: Server, call: Callable[[httpx.Client], httpx.Response]) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=70) as http:
            while not self._stop.is_set():
                answer = call(http)
                self.codes[answer.status_code] += 1
                if answer.status_code not in (200, 503, 507):
                    self.wrong.append(answer.text)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize(("part", "told"), [("engine", {503}), ("guests", {507})])
def test_killing_a_process_costs_only_what_was_in_flight(tmp_path: Path, part: str, told: set[int]) -> None:
    """guests: whoever was inside the code of ``echo`` is told that memory was short, as the kernel kills for that."""
    with running(tmp_path) as server:
        tiny_bert(server.folder("bert"))
        write_handler(server.folder("echo"), SLOW_ECHO)
        for name in ("bert", "echo"):
            server.load(name).raise_for_status()
        vector = server.invoke("bert", {"inputs": "a b"}).raise_for_status().json()
        load = Load(
            server,
            [
                lambda http: http.post("/models/bert/invoke", json={"inputs": "a b"}),
                lambda http: http.post("/models/echo/invoke", json=[1]),
            ],
        )
        deadline = time.monotonic() + 60
        while load.codes[200] < 20 and time.monotonic() < deadline:
            time.sleep(0.1)
        before = dict(load.codes)
        pings = []
        for _ in range(3):  # a kill between two calls finds nobody inside
            victim = server.pid_of(part)
            os.kill(victim, signal.SIGKILL)
            for _ in range(40):
                pings.append(server.http.get("/ping").status_code)
                time.sleep(0.1)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                if (
                    server.invoke("bert", {"inputs": "a b"}).status_code
                    == server.invoke("echo", [1]).status_code
                    == 200
                ):
                    break
                time.sleep(0.1)
            if told <= load.codes.keys():
                break
        time.sleep(0.5)
        load.stop()
        assert before.keys() == {200}, before
        assert load.wrong == []
        assert told <= load.codes.keys() <= {200, 503, *told}
        assert set(pings) == {200}
        assert server.pid_of(part) != victim
        assert server.names() == ["bert", "echo"]
        assert server.invoke("bert", {"inputs": "a b"}).json() == pytest.approx(vector)
        assert server.invoke("echo", [3]).json() == [3]


def test_a_front_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        write_handler(server.folder("echo"), SLOW_ECHO)
        server.load("echo").raise_for_status()
        master = server.pid_of("front")
        (worker,) = [process for process in server.family() if process.ppid() == master]
        worker.kill()
        server.http.close()
        server.http = httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60)
        server.wait_until_up()
        assert server.invoke("echo", [1]).json() == [1]


def test_nothing_is_left_when_the_supervisor_itself_is_killed(tmp_path: Path) -> None:
    server = Server(tmp_path).wait_until_up()
    family = server.family()
    assert len(family) >= 4
    server.process.kill()
    server.process.wait()
    deadline = time.monotonic() + 60
    while any(process.is_running() for process in family) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [process.cmdline() for process in family if process.is_running()] == []
    server.http.close()


def test_sigterm_lets_the_running_request_finish_and_ends_in_time(tmp_path: Path) -> None:
    server = Server(tmp_path).wait_until_up()
    write_handler(server.folder("slow"), SLOW_ECHO.replace("0.1", "2"))
    server.load("slow").raise_for_status()
    answers: list[httpx.Response] = []
    caller = threading.Thread(
        target=lambda: answers.append(
            httpx.post(f"http://127.0.0.1:{server.port}/models/slow/invoke", json=[5], timeout=30)
        )
    )
    caller.start()
    time.sleep(0.7)
    started = time.monotonic()
    assert server.stop() == 0
    caller.join()
    assert answers[0].json() == [5]
    assert time.monotonic() - started < 25
