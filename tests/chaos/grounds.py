"""What a fault needs of the machine: full disks, little memory, no processes, a clock that jumps. Undone afterwards."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_CLOCK_SOURCE = Path(__file__).with_name("clock.c")
#: For machines without a compiler: the clock as Python sees it, in every process that starts with this on its path.
_PATCH = """
import mmap, struct, time
real, file = time.time, open({path!r}, "rb")
shift = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
time.time = lambda: real() + struct.unpack("<q", shift[:8])[0]
time.time_ns = lambda: int(time.time() * 1e9)
"""


#: Read by every Python that starts with it on its path: the calls that make processes, with a limit on them.
_SCARCE = """
import errno, os, _posixsubprocess

def limited(call):
    def instead(*arguments):
        if os.path.exists({path!r}):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return call(*arguments)
    return instead

os.fork = limited(os.fork)
_posixsubprocess.fork_exec = limited(_posixsubprocess.fork_exec)
"""


class CannotBe(Exception):
    """The machine does not allow it; the text says what."""


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotBe("mounting a file system is not allowed here")


@contextmanager
def small_disk(folder: Path, size: str = "24m") -> Iterator[None]:
    """Mount a small file system of its own on ``folder``. Raises CannotBe."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Fill the file system of ``folder`` to the last byte."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            for size in (1 << 16, 512, 1):
                try:
                    while file.write(b"\0" * size):
                        pass
                except OSError:
                    continue
        yield
    finally:
        filler.unlink(missing_ok=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write into ``folder`` any more. Raises CannotBe."""
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,ro,bind", str(folder))
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def scarce(place: Path) -> dict[str, str]:
    """Return the environment of a server that gets no process inside ``no_process``."""
    site = place / "scarce"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_SCARCE.format(path=str(place / "no process")))
    return {"PYTHONPATH": str(site)}


@contextmanager
def no_process(place: Path) -> Iterator[None]:
    """Let the server of ``scarce`` start no process (limits do not bind root, so it is refused inside Python)."""
    (place / "no process").touch()
    try:
        yield
    finally:
        (place / "no process").unlink()


@contextmanager
def little_memory(pid: int, limit_bytes: int) -> Iterator[bool]:
    """Give process ``pid`` ``limit_bytes`` more at most; yields whether the kernel kills for it (a cgroup), or refuses.

    Without a cgroup that may be made, its address space is limited and allocations fail.
    """
    group = _cgroup(limit_bytes)
    if group is None:
        used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.prlimit(pid, resource.RLIMIT_AS, (used + limit_bytes, used + limit_bytes))
        yield False
        return
    try:
        (group / "cgroup.procs").write_text(str(pid))
        yield True
    finally:
        _empty(group)


def _cgroup(limit_bytes: int) -> Path | None:
    """Return a new memory cgroup, version 1 or 2; None where none can be made."""
    for root, limit in ((_CGROUPS / "memory", "memory.limit_in_bytes"), (_CGROUPS, "memory.max")):
        group = root / f"berth-chaos-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(limit_bytes))
            return group
        except OSError:
            group.rmdir()
    return None


def _empty(group: Path) -> None:
    """Remove ``group``; who is left in it moves to its parent."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            for pid in (group / "cgroup.procs").read_text().split():
                (group.parent / "cgroup.procs").write_text(pid)
            group.rmdir()
            return
        except OSError:
            time.sleep(0.05)


def movable_clock(place: Path) -> dict[str, str]:
    """Return the environment of a server whose wall clock ``jump`` can set.

    Native code sees it, too, where there is a C compiler. Not libfaketime: under it time.sleep of Python 3.11 fails.
    """
    shift, library = place / "shift", place / "clock.so"
    shift.write_bytes(struct.pack("<q", 0))
    command = [shutil.which("cc") or "", "-shared", "-fPIC", "-O1", "-o", str(library), str(_CLOCK_SOURCE), "-ldl"]
    if command[0] and subprocess.run(command, check=False).returncode == 0:
        return {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(shift)}
    (place / "patch").mkdir()
    (place / "patch" / "sitecustomize.py").write_text(_PATCH.format(path=str(shift)))
    return {"PYTHONPATH": str(place / "patch")}


def jump(place: Path, hours: float) -> None:
    """Set the clock ``hours`` from the right time."""
    with (place / "shift").open("r+b") as file:
        file.write(struct.pack("<q", int(hours * 3600)))


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop process ``pid`` for the block, as a stalled disk or a stopped machine does."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
