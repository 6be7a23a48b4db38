"""What the server's processes hold: memory, descriptors, threads, mappings, files; taken every few seconds."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import cpu_seconds
from tests.server import Server

#: The processes that everybody needs, by what their command lines say.
ROLES = ("supervisor", "engine", "guests", "front", "own")
#: What is counted of each; bytes of memory are of RAM that no file backs.
FIGURES = ("anonymous_mib", "rss_mib", "pss_mib", "descriptors", "threads", "maps")


@dataclass
class Sample:
    """One moment. figures: role -> FIGURES in their order; pids: role -> its processes."""

    at_s: float
    figures: dict[str, tuple[float, ...]]
    pids: dict[str, list[int]]
    files: int
    cpu_s: float = 0.0


@dataclass
class Census:
    """All samples of one server."""

    server: Server
    began_s: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)

    def take(self) -> Sample:
        """Look at every process now."""
        figures: dict[str, list[float]] = {}
        pids: dict[str, list[int]] = {}
        cpu_s = 0.0
        family = [self.server.process.pid, *(process.pid for process in self.server.family())]
        for pid in family:
            try:
                role, own = self._role(pid), _figures(pid)
                cpu_s += cpu_seconds([pid])
            except (OSError, ValueError):  # it has just ended
                continue
            pids.setdefault(role, []).append(pid)
            before = figures.get(role, [0.0] * len(FIGURES))
            figures[role] = [a + b for a, b in zip(before, own, strict=True)]
        files = sum(len(names) for place in ("state", "tmp") for _, _, names in os.walk(self.server.base / place))
        told = {role: tuple(values) for role, values in figures.items()}
        sample = Sample(time.monotonic() - self.began_s, told, pids, files, cpu_s)
        self.samples.append(sample)
        return sample

    def _role(self, pid: int) -> str:
        if pid == self.server.process.pid:
            return "supervisor"
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        if b"container.engine.main" in line:
            return "engine"
        if b"container.front.main" in line:
            return "front"
        if b"container.host.child" in line:
            return "guests" if b"--name guests" in line else "own"
        return "passing"


def _figures(pid: int) -> list[float]:
    home = Path(f"/proc/{pid}")
    rollup = {
        line.split(":")[0]: int(line.split()[1]) / 1024
        for line in (home / "smaps_rollup").read_text().splitlines()
        if line.endswith(" kB")
    }
    status = dict(line.split(":", 1) for line in (home / "status").read_text().splitlines())
    return [
        rollup["Anonymous"],
        rollup["Rss"],
        rollup["Pss"],
        float(len(os.listdir(home / "fd"))),  # noqa: PTH208 - only the names, and of a folder of /proc
        float(status["Threads"]),
        float((home / "maps").read_bytes().count(b"\n")),
    ]
