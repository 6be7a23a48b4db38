"""A server as the kernel sees it: which processes it is, their CPU time, their memory.

Processes are found by a marker in their environment or by their parent, because servers re-parent (multi-model-server's
launcher leaves its Java process to init) and start sessions of their own.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

MARKER = "BENCH_RUN_ID"
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


def tree(marker: str) -> list[int]:
    """Return the living processes started under ``MARKER=marker`` and their descendants, sorted."""
    wanted = f"{MARKER}={marker}".encode()
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = _stat(int(entry.name))
            if fields[0] == "Z":
                continue
            parents[int(entry.name)] = int(fields[1])
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
        except OSError:
            continue  # gone meanwhile, or not ours to read
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        grown = bool(more)
        found |= more
    return sorted(found)


def _stat(pid: int) -> list[str]:
    """Return /proc/PID/stat from the state on; the name before it may hold spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(pids: list[int]) -> float:
    """Return user and system seconds of ``pids`` so far; those that are gone count nothing."""
    total = 0
    for pid in pids:
        try:
            fields = _stat(pid)
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total * _TICK_S


def label(pid: int) -> str:
    """Return what a process is, in a word or two: the module or script that python runs, else the program."""
    try:
        words = [
            word for word in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0") if word
        ]
    except OSError:
        return "gone"
    if not words:
        return "unknown"
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    script = next((word for word in words[1:] if not word.startswith("-")), words[0])
    return Path(script if "python" in Path(words[0]).name else words[0]).name


def machine_busy_seconds() -> float:
    """Return CPU seconds of everything on the machine so far, time stolen by the hypervisor included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) * _TICK_S


def pss_bytes(pids: list[int], kind: str = "Pss") -> int:
    """Return the proportional set size of ``pids`` together; kind: Pss, Pss_Anon, Pss_File or Pss_Shmem."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")), 0) * 1024
    return total


def disk_bytes(pids: list[int]) -> int:
    """Return the bytes that ``pids`` so far had the disk read, their page faults and read-ahead included."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))
    return total


def own_bytes(pids: list[int], suffix: str) -> int:
    """Return the proportional set size of what ``pids`` have in memory of no file, or of files named ``*suffix``.

    Libraries are left out: their pages are shared with whatever else runs on the machine, and how much of them counts
    as ours moves by megabytes while nothing happens.
    """
    total = pss_bytes(pids, "Pss_Anon") + pss_bytes(pids, "Pss_Shmem")
    for pid in pids:
        mapping = ""
        try:
            lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if not words[0].endswith(":"):
                mapping = words[-1]
            elif words[0] == "Pss:" and mapping.endswith(suffix):
                total += int(words[1]) * 1024
            elif words[0] == "Anonymous:" and mapping.endswith(suffix):
                total -= int(words[1]) * 1024  # counted above
    return total


def end(root: int, marker: str, patience_s: float = 30.0) -> None:
    """End what runs under ``marker``: SIGTERM to ``root``, then by pid whatever is left after ``patience_s``."""
    _signal(root, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if not tree(marker):
            return
        time.sleep(0.1)
    for pid in tree(marker):
        _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
