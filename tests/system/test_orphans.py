"""Processes that an archive's code starts end with the process that it runs in; nobody dead is left unreaped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

from tests.server import Server, running, until, write_handler

STARTS_ANOTHER = """
import os, subprocess
from container.handler import Handler

class StartsAnother(Handler):
    def load(self, model_dir, context):
        self.other = subprocess.Popen(["sleep", "1000"])

    def predict(self, batch):
        return [[os.getpid(), self.other.pid] for _ in batch]
"""


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def pids_of(server: Server, name: str) -> tuple[int, int]:
    """The process that ``name`` runs in, and the one that it started."""
    until(lambda: server.invoke(name, 0).status_code == 200)
    mine, other = server.invoke(name, 0).json()
    assert alive(other)
    return mine, other


def test_what_an_archive_started_is_gone_when_its_process_is_and_nobody_dead_is_left(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        for name in ("shared", "own"):
            berth = {"isolation": "own"} if name == "own" else {}
            write_handler(server.folder(name), STARTS_ANOTHER, **berth)
            server.load(name).raise_for_status()
        _, others = pids_of(server, "own")
        server.unload("own").raise_for_status()
        until(lambda: not alive(others))

        guests, others = pids_of(server, "shared")
        os.kill(guests, signal.SIGKILL)
        until(lambda: not alive(others))

        server.load("own").raise_for_status()
        started = [pids_of(server, name)[1] for name in ("shared", "own")]
        engine = server.pid_of("engine")
        os.kill(engine, signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in started))
        until(lambda: server.pid_of("engine") != engine)

        last = [pids_of(server, name)[1] for name in ("shared", "own")]
        until(lambda: [each for each in server.family() if each.status() == psutil.STATUS_ZOMBIE] == [])
    until(lambda: not any(alive(pid) for pid in last))
