"""Every fault of the table: how it is done to a server, and what the one who did it may be told."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import psutil

from tests.chaos import grounds
from tests.server import Server, living, write_handler

JAVA = "com.amazonaws.ml.mms.ModelServer"
#: What a process may take before the kernel ends it, on top of what it has.
ENOUGH_BYTES = 400 << 20
_numbers = itertools.count()

GUILTY = """
import ctypes, os, re, sys, time
from container.handler import Handler

def cuda_error():
    import torch
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def poison():
    import torch
    torch.cuda.is_initialized = lambda: True  # without a GPU: as if there were a context
    cuda_error()

def bomb():
    hoard = []
    while True:
        hoard.append(b"x" * (16 << 20))

def fill():
    raise OSError(28, "No space left on device")

WAYS = {
    "segfault": lambda: ctypes.string_at(0), "exit 1": lambda: os._exit(1), "sys.exit": lambda: sys.exit(1),
    "exit 137": lambda: os._exit(137), "hang": lambda: time.sleep(3600),
    "regex": lambda: re.match(r"(a+)+$", "a" * 60 + "b"), "bomb": bomb, "fill": fill,
    "cuda error": cuda_error, "poison": poison,
}

class Guilty(Handler):
    def predict(self, batch):
        for how in batch:
            WAYS.get(how, lambda: None)()
        return batch
"""

#: Statuses that the guilty model's own caller was told, in order.
Told = list[int]


@dataclass(frozen=True)
class Fault:
    """One row of the table. own: what the guilty model's callers must be told; None: there is no guilty model.

    ground: what the server must stand on, see ``faults``. forgets: the names are gone with what was broken.
    """

    name: str
    do: Callable[[Server], Told]
    own: Told | None = None
    ground: str = "plain"
    forgets: bool = False


def kill(*parts: str) -> Callable[[Server], Told]:
    """kill -9 of these processes, all at once."""

    def do(server: Server) -> Told:
        for pid in [server.pid_of(part) for part in parts]:
            os.kill(pid, signal.SIGKILL)
        return []

    return do


def guilty(*ways: str, **berth: float | str) -> Callable[[Server], Told]:
    """A model of an archive that does these things, one request after the other."""

    def do(server: Server) -> Told:
        name = f"guilty{next(_numbers)}"
        write_handler(server.folder(name), GUILTY, **berth)
        server.load(name).raise_for_status()
        return [server.invoke(name, way).status_code for way in ways]

    return do


def _worker(server: Server) -> int:
    master = server.pid_of("front")
    return next(process.pid for process in server.family() if process.ppid() == master)


def kill_worker(number: int) -> Callable[[Server], Told]:
    """A signal to gunicorn's worker."""

    def do(server: Server) -> Told:
        os.kill(_worker(server), number)
        return []

    return do


def _twice(server: Server) -> Told:
    engine = server.pid_of("engine")
    os.kill(engine, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.pid_of("engine") == engine:
        time.sleep(0.02)
    return kill("engine")(server)


def _stand_still(server: Server) -> Told:
    with grounds.stopped(server.pid_of("engine")):
        time.sleep(3)
    return []


def _bomb(server: Server) -> Told:
    with grounds.little_memory(server.pid_of("guests"), ENOUGH_BYTES):
        return guilty("bomb")(server)


def _state_full(server: Server) -> Told:
    with grounds.full(server.base / "state"):
        folder = write_handler(server.folder("needs"), GUILTY)
        (folder / "code" / "requirements.txt").write_text("attrs\n")
        told = [server.load("needs").status_code]
        kill("engine")(server)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and server.invoke("left", {"number": 0}).status_code != 200:
            time.sleep(0.05)
    return told


def _no_process(server: Server) -> Told:
    with grounds.no_process(server.base):
        kill("engine")(server)
        kill_worker(signal.SIGKILL)(server)
        time.sleep(2)
    return []


def _models_full(server: Server) -> Told:
    write_handler(server.folder("late"), GUILTY)
    with grounds.full(server.base / "models"):
        told = [server.load("late").status_code]
        kill("guests")(server)
        time.sleep(1)
    return told


def _read_only(server: Server) -> Told:
    with grounds.read_only(server.base / "state"):
        kill("guests")(server)
        time.sleep(2)
    return []


def jump(hours: float) -> Callable[[Server], Told]:
    """The wall clock jumps; a model is loaded, asked and unloaded under the new time."""

    def do(server: Server) -> Told:
        grounds.jump(server.base, hours)
        told = guilty("nothing")(server)
        name = max((name for name in server.names() if name.startswith("guilty")), key=len)
        server.unload(name).raise_for_status()
        return told

    return do


def _java(server: Server) -> Told:
    """Java knows its models by itself alone; once it is back they are loaded anew, as the platform does."""
    (java,) = living(server.family(), JAVA)
    java.kill()
    deadline = time.monotonic() + 40
    names = ["left", "right", "one", "two"]
    while names and time.monotonic() < deadline:
        try:
            if server.load(names[0]).status_code == 200:
                names.pop(0)
        except (httpx.TransportError, psutil.Error):
            pass
        time.sleep(0.1)
    return []


FAULTS = [
    Fault("guests' process killed", kill("guests")),
    Fault("segfault in an archive's native code", guilty("segfault"), [503]),
    Fault("the same until it is kept out", guilty("segfault", "segfault", "nothing"), [503, 503, 503]),
    Fault("an archive's os._exit(1), then a good request", guilty("exit 1", "nothing"), [503, 200]),
    Fault("an archive's sys.exit(1)", guilty("sys.exit", "nothing"), [500, 200]),
    Fault("an archive's process exits with 137", guilty("exit 137"), [507]),
    Fault("memory bomb in an archive", _bomb, [507]),
    Fault("an archive sleeps for ever", guilty("hang", "nothing", timeout_s=1.0), [504, 503]),
    Fault("catastrophic regex, the interpreter's lock held", guilty("regex", "nothing", timeout_s=1.0), [504, 503]),
    Fault("segfault in a process of its own", guilty("segfault", "nothing", isolation="own"), [503, 200]),
    Fault("an archive says it had a CUDA error", guilty("cuda error", "nothing"), [500, 200]),
    Fault("a CUDA context is poisoned (simulated)", guilty("poison"), [503]),
    Fault("an archive's own disk is full", guilty("fill", "nothing"), [507, 200]),
    Fault("front worker killed", kill_worker(signal.SIGKILL)),
    Fault("front worker told to end", kill_worker(signal.SIGTERM)),
    Fault("engine stands still for 3 s", _stand_still),
    Fault("no process to be had for 2 s, engine and front worker killed", _no_process),
    Fault("engine killed", kill("engine")),
    Fault("engine and guests killed at once", kill("guests", "engine")),
    Fault("state folder full: an environment is asked for, engine killed", _state_full, [507], "disks"),
    Fault("models folder full: one more is loaded, guests killed", _models_full, [507], "disks"),
    Fault("state folder read-only for 2 s, guests killed", _read_only, ground="disks"),
    Fault("engine killed twice in a row", _twice, ground="clock"),
    Fault("clock jumps a day ahead", jump(24), [200], "clock"),
    Fault("clock jumps two days back", jump(-24), [200], "clock"),
    Fault("Java killed (mms door)", _java, ground="mms", forgets=True),
]
