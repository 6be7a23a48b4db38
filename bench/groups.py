"""A limit on memory that the kernel keeps: a control group for one server, and what its processes take and read.

Page cache counts in the group of whoever reads a file first, so a server within a group has no more page cache than its
limit leaves it. Made under the group of this process, or the nearest one above it that can have children with a limit;
needs root. Does not cover: groups that already run something.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from container.memory.probe import cgroups, stat

_LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}
#: memory.stat of each version: what cannot be dropped, and what of files lies in the page cache.
_HELD = {1: ("total_rss", "total_shmem"), 2: ("anon", "shmem", "kernel")}
_KERNEL_V1 = "memory.kmem.usage_in_bytes"
_CACHED = {1: "total_cache", 2: "file"}


class Group(NamedTuple):
    """One control group of ``version`` 1 or 2."""

    folder: Path
    version: int

    def entering(self, command: list[str]) -> list[str]:
        """Return ``command`` so that it runs in the group from its first instruction on."""
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"), *command]

    def limit(self, nbytes: int) -> None:
        """Let the group have ``nbytes`` and no more. Raises OSError (EBUSY) when it has more that cannot be dropped."""
        (self.folder / _LIMIT[self.version]).write_text(str(nbytes))

    def held_bytes(self) -> int:
        """Return what the group's processes have that the kernel cannot drop."""
        figures = stat((self.folder / "memory.stat").read_text())
        kernel = self.folder / _KERNEL_V1
        return sum(figures.get(name, 0) for name in _HELD[self.version]) + (
            int(kernel.read_text()) if kernel.exists() else 0
        )

    def cached_bytes(self) -> int:
        """Return the group's page cache."""
        return stat((self.folder / "memory.stat").read_text()).get(_CACHED[self.version], 0)


@contextmanager
def group(name: str) -> Iterator[Group | None]:
    """Make a group and remove it afterwards, when all its processes have ended; None where that cannot be done."""
    made = _make(f"{name}-{os.getpid()}")
    try:
        yield made
    finally:
        if made is not None:
            _remove(made)


def _make(name: str) -> Group | None:
    for version, parent in cgroups(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()):
        folder = Path(str(parent)) / name
        with suppress(OSError):
            folder.mkdir()
            if (folder / _LIMIT[version]).exists():  # else the group above gives its children no say in memory
                return Group(folder, version)
            folder.rmdir()
    return None


def _remove(made: Group, patience_s: float = 5.0) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            made.folder.rmdir()
            return
        except OSError:  # its last process is not quite gone
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
