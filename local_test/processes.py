"""The demo's processes: each in a process group of its own, its log in a file, and none left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

#: The repository, where the packages are found.
ROOT = Path(__file__).resolve().parent.parent


class NotStarted(Exception):
    """A process that did not come up; the message has the last lines of its log."""


class Process:
    """One Python module run as a process, with everything it starts in its process group."""

    def __init__(self, what: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.what, self.log = what, log
        self._output = log.with_suffix(".out")  # files, not pipes: the process may outlive the demo (KEEP=1)
        with log.open("wb") as stderr, self._output.open("wb") as stdout:
            self._child = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self.pid = self._child.pid

    def wait_ready(self, url: str, within_s: float) -> float:
        """Ask ``url`` until it answers 200; returns the seconds that took. Raises NotStarted."""
        begin = time.monotonic()
        while time.monotonic() - begin < within_s:
            if self._child.poll() is not None:
                raise NotStarted(f"{self.what} ended with {self._child.returncode}:\n{self.last_words()}")
            with suppress(URLError, OSError), urllib.request.urlopen(url, timeout=2):
                return time.monotonic() - begin
            time.sleep(0.05)
        raise NotStarted(f"{self.what} did not answer {url} within {within_s:g} s:\n{self.last_words()}")

    def first_line(self, within_s: float = 60.0) -> str:
        """Return the first line it prints. Raises NotStarted when it ends without one, or takes too long."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            ended = self._child.poll()
            line, end, _ = self._output.read_text(errors="replace").partition("\n")
            if end:
                return line
            if ended is not None:
                raise NotStarted(f"{self.what} ended with {ended}:\n{self.last_words()}")
            time.sleep(0.05)
        raise NotStarted(f"{self.what} said nothing within {within_s:g} s:\n{self.last_words()}")

    def last_words(self, lines: int = 15) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, within_s: float = 25.0) -> None:
        """SIGTERM to the process, SIGKILL to what is left of its group after ``within_s``."""
        with suppress(ProcessLookupError):
            if self._child.poll() is None:
                os.kill(self.pid, signal.SIGTERM)  # to the head only: it stops its own children in order
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(within_s)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._child.wait()


def memory_bytes(root: int) -> int | None:
    """Return what ``root`` and its descendants take, pages they share counted once; None where no /proc tells."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone meanwhile
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    ours, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in ours} - ours
        ours |= more
        grown = bool(more)
    total = 0
    for pid in ours:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total or None


def server_environment(place: Path, port: int, **settings: str) -> dict[str, str]:
    """Return the environment of a server under ``place``: the caller's, less what would change the demo."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BERTH_", "SAGEMAKER_")) or k == "BERTH_DEVICE"}
    return {
        **kept,
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "SAGEMAKER_BASE_DIR": str(place / "ml"),
        "SAGEMAKER_MULTI_MODEL": "true",
        "BERTH_STATE_DIR": str(place / "state"),
        **settings,
    }


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
