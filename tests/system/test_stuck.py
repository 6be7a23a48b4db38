"""A process that stands still though nobody's request is inside a model's code; and a machine that stood still."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from pathlib import Path

from tests.server import running, until, write_handler

ECHO = """
from container.handler import Handler

class Echo(Handler):
    def predict(self, batch):
        return batch
"""

#: After its answer a thread of the model's own keeps the interpreter's lock for an hour.
HOLDS_LATER = """
import ctypes, threading
from container.handler import Handler

class HoldsLater(Handler):
    def predict(self, batch):
        if batch == ["hold"]:
            threading.Timer(0.3, ctypes.PyDLL(None).sleep, (3600,)).start()
        return batch
"""


def test_a_thread_that_holds_the_interpreter_after_its_answer_ends_the_process_and_others_answer_again(
    tmp_path: Path,
) -> None:
    with running(tmp_path) as server:
        write_handler(server.folder("holds"), HOLDS_LATER, timeout_s=3.0)
        write_handler(server.folder("echo"), ECHO, timeout_s=3.0)
        for name in ("holds", "echo"):
            server.load(name).raise_for_status()
        stuck = server.pid_of("guests")
        assert server.invoke("holds", "hold").json() == "hold"
        until(lambda: server.invoke("echo", 1).status_code == 504)
        until(lambda: server.pid_of("guests") != stuck, 90)
        until(lambda: server.invoke("echo", 1).status_code == 200)
        assert [server.describe(name)["state"] for name in ("holds", "echo")] == ["ready", "ready"], "nobody saw who"
        assert server.http.get("/ping").status_code == 200


def test_a_machine_that_stood_still_keeps_nobody_out(tmp_path: Path) -> None:
    """As `docker pause` does it, or a virtual machine that is moved."""
    with running(tmp_path) as server:
        naps = ECHO.replace("return batch", "import time; time.sleep(0.5); return batch")
        write_handler(server.folder("naps"), naps, timeout_s=1.0)
        server.load("naps").raise_for_status()
        guests = server.pid_of("guests")
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            call = pool.submit(server.invoke, "naps", 1)
            time.sleep(0.25)
            everybody = [server.process.pid, *(process.pid for process in server.family())]
            for pid in everybody:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(3)
            for pid in everybody:
                os.kill(pid, signal.SIGCONT)
            assert call.result().status_code in (200, 504)
        until(lambda: server.invoke("naps", 2).status_code == 200)
        assert server.pid_of("guests") == guests
        assert "killing process" not in server.log()
