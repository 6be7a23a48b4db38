"""The fault table: break one thing under load, note what callers saw and how long until every model answers again.

Each fault gets a fresh server with four models (two of archives' code, two of ours) and callers that check every
answer. A fault passes if nothing registered is lost, no answer is wrong, and all models answer again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.traffic import Callers, Model, Told, house
from tests.server import Server, running, write_handler

#: Callers are watched for this long before the fault, and after all models answer again.
CALM_S = 0.7
#: All models must answer again within this.
BACK_S = 40.0

CRASHES = """
import ctypes, os, time
from container.handler import Handler

class Crashes(Handler):
    def predict(self, batch):
        if batch[0] == "segfault":
            ctypes.string_at(0)
        if batch[0] in ("cuda", "poison"):
            import torch

            if batch[0] == "poison":  # without a GPU: as if there were a context
                torch.cuda.is_initialized = lambda: True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if batch[0] == "fill":
            raise OSError(28, "No space left on device")
        return batch
"""


@dataclass
class Row:
    """One fault and what came of it."""

    fault: str
    told: Told
    back_s: float
    lost: list[str]
    pings: set[int]
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not (self.lost or self.told.wrong or self.notes) and self.back_s < BACK_S

    def cells(self) -> tuple[str, str, str, str]:
        """Fault, what callers saw, seconds until all answered, verdict."""
        saw = ", ".join(f"{count} x {code}" for code, count in sorted(self.told.codes.items()) if code != "200")
        pings = "" if self.pings == {200} else f"; /ping {sorted(self.pings)}"
        verdict = "nothing lost, nothing wrong" if self.passed else "; ".join(self.lost + self.told.wrong + self.notes)
        return self.fault, (saw or "nothing") + pings, f"{self.back_s:.1f}", verdict[:300]


def _worker(server: Server) -> int:
    master = server.pid_of("front")
    return next(process.pid for process in server.family() if process.ppid() == master)


def _crash(server: Server, how: str, times: int = 1) -> None:
    write_handler(server.folder("crashes"), CRASHES)
    server.load("crashes").raise_for_status()
    for _ in range(times):
        server.invoke("crashes", how)


def _freeze(server: Server) -> None:
    """The engine stands still for three seconds, as under a stalled disk or a stopped machine."""
    engine = server.pid_of("engine")
    os.kill(engine, signal.SIGSTOP)
    time.sleep(3)
    os.kill(engine, signal.SIGCONT)


def _fill(folder: Path) -> None:
    """Fill the file system of ``folder`` to the last byte."""
    with (folder / "filler").open("wb") as file:
        try:
            while True:
                file.write(b"\0" * 65536)
                file.flush()
        except OSError:
            pass


def _state_full(server: Server) -> None:
    _fill(server.base / "state")
    os.kill(server.pid_of("engine"), signal.SIGKILL)


def _models_full(server: Server) -> None:
    _fill(server.base / "models")
    os.kill(server.pid_of("guests"), signal.SIGKILL)


def _clock(hours: float) -> Callable[[Server], None]:
    def jump(server: Server) -> None:
        (server.base / "clock").write_text(f"{hours * 3600}")
        write_handler(server.folder("late"), CRASHES)
        server.load("late").raise_for_status()
        server.unload("late").raise_for_status()

    return jump


FAULTS: dict[str, Callable[[Server], None]] = {
    "engine killed": lambda server: os.kill(server.pid_of("engine"), signal.SIGKILL),
    "engine killed twice in a row": lambda server: [_kill_engine(server) for _ in range(2)] and None,
    "guests' process killed": lambda server: os.kill(server.pid_of("guests"), signal.SIGKILL),
    "engine and guests killed at once": lambda server: (
        [os.kill(server.pid_of(part), signal.SIGKILL) for part in ("guests", "engine")] and None
    ),
    "segfault in an archive's native code": lambda server: _crash(server, "segfault"),
    "the same, until it is kept out": lambda server: _crash(server, "segfault", 3),
    "an archive says it had a CUDA error": lambda server: _crash(server, "cuda", 3),
    "a CUDA context is poisoned": lambda server: _crash(server, "poison"),
    "an archive's disk is full": lambda server: _crash(server, "fill", 3),
    "front worker killed": lambda server: os.kill(_worker(server), signal.SIGKILL),
    "front worker stopped for good": lambda server: os.kill(_worker(server), signal.SIGTERM),
    "engine stands still for 3 s": _freeze,
    "state folder full, engine killed": _state_full,
    "models folder full, guests killed": _models_full,
    "clock jumps a day ahead": _clock(24),
    "clock jumps a day back": _clock(-24),
}


def _kill_engine(server: Server) -> None:
    engine = server.pid_of("engine")
    os.kill(engine, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if server.pid_of("engine") != engine:
                return
        except AssertionError:
            pass
        time.sleep(0.05)


@contextmanager
def _tmpfs(folder: Path, size: str = "24m") -> Iterator[bool]:
    """Mount a small file system on ``folder``; False where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=False)


_CLOCK = """
import time
real, path = time.time, {path!r}

def fake():
    try:
        return real() + float(open(path).read() or 0)
    except (OSError, ValueError):
        return real()

time.time, time.time_ns = fake, lambda: int(fake() * 1e9)
"""


def _fake_clock(base: Path) -> dict[str, str]:
    """The environment of a server whose wall clock can jump, as Python sees it.

    Not libfaketime: under it time.sleep of Python 3.11 (clock_nanosleep to an absolute time) fails with EINVAL.
    """
    (base / "fake").mkdir()
    (base / "fake" / "sitecustomize.py").write_text(_CLOCK.format(path=str(base / "clock")))
    return {"PYTHONPATH": str(base / "fake")}


def read_only() -> str:
    """Start a server on a read-only state folder; return what is wrong with how it refuses."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        state = Path(place) / "state"
        state.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(state)], check=False).returncode:
            return "not tried: mounting a file system is not allowed here"
        stack.callback(subprocess.run, ["umount", "-l", str(state)], check=False)
        server = Server(Path(place))
        status = server.process.wait(60)
        server.http.close()
        refused = status == 1 and "cannot write to the state folder" in server.log()
        return "refuses to start and says which folder" if refused else f"wrong: {status}: {server.log()[-300:]}"


def run(fault: str) -> Row | str:
    """Break a fresh server by ``fault``; return the row, or why it cannot be tried here."""
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environ: dict[str, str] = {}
        for word, place in (("state folder", "state"), ("models folder", "models")):
            if fault.startswith(word) and not stack.enter_context(_tmpfs(base / place)):
                return "not tried: mounting a file system is not allowed here"
        if fault.startswith("clock"):
            environ = _fake_clock(base)
        server = stack.enter_context(running(base, **environ))
        row = _under_load(fault, server)
        (base / "state" / "filler").unlink(missing_ok=True)
        return row


def _under_load(fault: str, server: Server) -> Row:
    models = house(server)
    callers = Callers(server, models)
    time.sleep(CALM_S)
    broken = time.monotonic()
    FAULTS[fault](server)
    pings = _until_all_answer(server, callers.told, models, broken)
    back_s = max([callers.told.failed_at.get(name, broken) for name in models]) - broken
    told = callers.stop()
    lost = sorted(set(models).difference(server.names()))
    row = Row(fault, told, max(0.0, back_s), [f"{name} is lost" for name in lost], pings)
    late = [name for name in models if told.answered_at.get(name, 0.0) < broken]
    row.notes += [f"{name} never answered again" for name in late]
    return row


def _until_all_answer(server: Server, told: Told, models: dict[str, Model], broken: float) -> set[int]:
    """Ping until every model has answered after its last failure for a while; return what /ping said."""
    pings: set[int] = set()
    calm_since = time.monotonic() + 0.5
    while time.monotonic() - broken < BACK_S:
        try:
            pings.add(server.http.get("/ping", timeout=5).status_code)
        except OSError:
            pings.add(0)
        except Exception:  # noqa: BLE001 - httpx has many names for a connection that broke
            pings.add(0)
        now = time.monotonic()
        if any(told.answered_at.get(name, 0.0) <= max(told.failed_at.get(name, 0.0), broken) for name in models):
            calm_since = now
        if now - calm_since > CALM_S:
            break
        time.sleep(0.03)
    return pings - {0} or {0}


def table(rows: list[Row | tuple[str, str]]) -> str:
    """Return the fault table in Markdown."""
    lines = ["| fault | what callers saw besides 200 | seconds until all answer | outcome |", "|---|---|---|---|"]
    for row in rows:
        cells = row.cells() if isinstance(row, Row) else (row[0], "", "", row[1])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(names: list[str] | None = None) -> tuple[bool, str]:
    """Try ``names``, or all; return whether one did not pass, and the table."""
    rows: list[Row | tuple[str, str]] = []
    for fault in names or FAULTS:
        started = time.monotonic()
        row = run(fault)
        rows.append(row if isinstance(row, Row) else (fault, row))
        print(f"... {fault}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    at_start = "" if names else read_only()
    if at_start:
        rows.append(("state folder read-only at start", at_start))
    failed = at_start.startswith("wrong") or any(isinstance(row, Row) and not row.passed for row in rows)
    return failed, table(rows)


def main(names: list[str]) -> int:
    """Run ``names``, or all; print the table; return 1 if a fault did not pass."""
    failed, text = report(names)
    print(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
