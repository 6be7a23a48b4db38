"""What models have done is remembered by the server, not by one engine: a new engine knows the offenders."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.server import Server, running, until, write_handler, write_script

BAD = """
import os, time
from container.handler import Handler

class Bad(Handler):
    def predict(self, batch):
        if "hang" in batch:
            time.sleep(3600)
        if "die" in batch:
            os._exit(1)
        return [os.getpid() for _ in batch]
"""

UNPICKLES_ELSEWHERE = """
import concurrent.futures, pathlib, pickle

def model_fn(model_dir):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(pickle.loads, pathlib.Path(model_dir, "net.pkl").read_bytes()).result()

def predict_fn(data, model):
    return model.double(data)
"""
NET = "class Net:\n    def double(self, number):\n        return 2 * number\n"


def another_engine(server: Server) -> None:
    """Kill the engine and wait for the next one."""
    killed = server.pid_of("engine")
    os.kill(killed, signal.SIGKILL)
    until(lambda: server.pid_of("engine") != killed)
    until(lambda: server.http.get("/models").status_code == 200)


def anew(server: Server, name: str) -> int:
    """Load ``name`` anew; return the pid of the process that it runs in."""
    server.unload(name).raise_for_status()
    server.load(name).raise_for_status()
    pid: int = server.invoke(name, "ok").raise_for_status().json()
    return pid


def test_an_offender_gets_a_process_of_its_own_though_engines_died_between_its_offences(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        write_handler(server.folder("bad"), BAD, timeout_s=1.0)
        server.load("bad").raise_for_status()
        for offence in (1, 2):
            assert server.invoke("bad", "hang").status_code == 504
            until(lambda: server.describe("bad")["state"] == "quarantined")
            another_engine(server)
            described = server.describe("bad")
            assert (described["state"], "did not come back" in described["reason"]) == ("quarantined", True)
            pid = anew(server, "bad")
            assert (pid != server.pid_of("guests")) is (offence == 2)
        another_engine(server)
        assert server.invoke("bad", "ok").json() != server.pid_of("guests")


def test_a_death_that_one_engine_forgave_counts_for_the_next(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        write_handler(server.folder("bad"), BAD)
        server.load("bad").raise_for_status()
        assert server.invoke("bad", "die").status_code == 503
        assert server.invoke("bad", "ok").status_code == 200
        another_engine(server)
        assert server.invoke("bad", "ok").status_code == 200
        server.invoke("bad", "die")
        until(lambda: server.describe("bad")["state"] == "quarantined")
        assert "died 2 times" in server.describe("bad")["reason"]


def test_what_does_not_load_among_others_is_not_tried_there_again_by_the_next_engine(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        folder = write_script(server.folder("threaded"), UNPICKLES_ELSEWHERE, net=NET)
        (folder / "net.pkl").write_bytes(b"cnet\nNet\n(tR.")
        server.load("threaded").raise_for_status()
        assert server.log().count("gets a process of its own") == 1
        another_engine(server)
        assert server.invoke("threaded", 4).json() == 8
        assert server.log().count("gets a process of its own") == 1
