"""For a while the system has no process to give (EAGAIN, ENOMEM): what is needed is started when there is one again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from tests.chaos import grounds
from tests.server import Server, living, running, until, write_handler

ECHO = """
from container.handler import Handler

class Echo(Handler):
    def predict(self, batch):
        return batch
"""


@contextmanager
def scarce(tmp_path: Path, **environ: str) -> Iterator[Server]:
    """A server with the model ``echo`` where processes may be scarce."""
    with running(tmp_path, **grounds.scarce(tmp_path), **environ) as server:
        write_handler(server.folder("echo"), ECHO)
        server.load("echo").raise_for_status()
        yield server


def workers(server: Server, master: int) -> list[psutil.Process]:
    """The front's workers, without those that wait to be reaped."""
    return [each for each in living(server.family(), "") if each.ppid() == master]


def refused_for(server: Server, seconds: float) -> None:
    """See that calls are refused for a while as they are when the engine dies, and that /ping stays 200."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        refused = server.invoke("echo", 1)
        assert (refused.status_code, refused.json()["reason"]) == (503, "server.restarting")
        assert refused.headers["retry-after"] == "1"
        assert server.http.get("/ping").status_code == 200
        time.sleep(0.1)


def again(server: Server) -> Server:
    """Talk to the server on a new connection."""
    server.http.close()
    server.http = httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60)
    return server


def test_an_engine_that_cannot_be_started_is_started_later(tmp_path: Path) -> None:
    with scarce(tmp_path) as server:
        with grounds.no_process(tmp_path):
            psutil.Process(server.pid_of("engine")).kill()
            until(lambda: server.invoke("echo", 1).status_code == 503)
            refused_for(server, 2.0)
            assert server.process.poll() is None
        until(lambda: server.invoke("echo", 1).status_code == 200)
        assert server.names() == ["echo"]
        assert "the engine cannot be started" in server.log()
        assert "Traceback" not in server.log()


def test_a_server_that_waits_for_a_process_stops_when_it_is_told_to(tmp_path: Path) -> None:
    with scarce(tmp_path) as server, grounds.no_process(tmp_path):
        psutil.Process(server.pid_of("engine")).kill()
        until(lambda: "the engine cannot be started" in server.log())
        assert server.stop(10) == 0


def test_the_http_server_is_started_again_when_there_is_a_process_for_it(tmp_path: Path) -> None:
    with scarce(tmp_path) as server:
        with grounds.no_process(tmp_path):
            psutil.Process(server.pid_of("front")).kill()
            until(lambda: "the HTTP server cannot be started" in server.log())
        until(lambda: living(server.family(), "container.front.main"))
        assert again(server).wait_until_up().invoke("echo", 2).json() == 2
        assert "Traceback" not in server.log()


def test_a_front_worker_is_replaced_later_and_the_others_serve_meanwhile(tmp_path: Path) -> None:
    with scarce(tmp_path, BERTH_FRONT_WORKERS="2") as server:
        master = server.pid_of("front")
        until(lambda: len(workers(server, master)) == 2)
        one, other = workers(server, master)
        with grounds.no_process(tmp_path):
            one.kill()
            until(lambda: "no process for a front worker" in server.log())
            assert again(server).invoke("echo", 3).json() == 3
            assert other.is_running()
        until(lambda: len(workers(server, master)) == 2)
        assert server.pid_of("front") == master
        assert "Traceback" not in server.log()


HANGS = ECHO.replace("return batch", "import time; time.sleep(3600)")


def test_a_process_that_died_with_its_engine_is_not_killed_once_more(tmp_path: Path) -> None:
    """Its pid may be another's by the deadline that it has left on the page."""
    with running(tmp_path) as server:
        write_handler(server.folder("hangs"), HANGS, timeout_s=3.0)
        server.load("hangs").raise_for_status()
        engine, guests = server.pid_of("engine"), server.pid_of("guests")
        asked = time.monotonic()
        with httpx.Client(base_url=server.http.base_url, timeout=0.5) as http:
            try:
                http.post("/models/hangs/invoke", json=1)
            except httpx.TimeoutException:
                pass
        os.kill(engine, signal.SIGKILL)
        until(lambda: server.pid_of("engine") != engine)
        until(lambda: time.monotonic() - asked > 5.0)
        until(lambda: server.http.get("/models").status_code == 200)
        assert f"killing process {guests}" not in server.log()
        assert server.describe("hangs")["state"] == "ready"
