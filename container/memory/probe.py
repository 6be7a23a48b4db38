"""The machine's own figures: how many bytes are there for models. Read from the kernel and the driver, never from RSS.

Of the RAM a process may use, the least of these counts:
    MemAvailable                                          what the machine has, page cache that can be dropped included
    limit - (anonymous + shared + kernel) of each cgroup  from the process's own group up to the root, v2 and v1

A cgroup's file pages are not counted as used: weights are mapped files, and the kernel drops such pages under pressure.
RSS is no measure at all: it counts each mapping of one file again (speed.md, section 2e).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

#: What the default limit leaves to activations, page cache and everybody else.
SHARE = 0.8
#: v1 writes "no limit" as the largest multiple of a page.
_NO_LIMIT = 1 << 60
#: memory.stat of v2, in which tmpfs and memfd pages ("shmem") are file pages that cannot be dropped.
_USED_V2 = ("anon", "shmem", "kernel")
_KERNEL_BEFORE_5_18 = ("slab_unreclaimable", "kernel_stack", "pagetables", "percpu", "sock")
_USED_V1 = ("total_rss", "total_shmem")


def default_limit(device: str) -> int:
    """Return 80 % of the bytes that are free on ``device``: "cpu", or "cuda:0", the only one that is asked itself."""
    if device.startswith("cuda"):
        import torch  # here, because this is the only line of the module that needs it

        return int(torch.cuda.mem_get_info(device)[0] * SHARE)
    return int(free_ram_bytes() * SHARE)


def free_ram_bytes(root: Path = Path("/")) -> int:
    """Return the bytes of RAM this process may still take; 0 at the least. ``root``: where /proc and /sys are."""
    figures = [meminfo(_read(root / "proc/meminfo"))["MemAvailable"]]
    for version, group in cgroups(_read(root / "proc/self/cgroup"), _read(root / "proc/self/mountinfo")):
        free = _free_v2(root, group) if version == 2 else _free_v1(root, group)
        if free is not None:
            figures.append(free)
    return max(0, min(figures))


def meminfo(text: str) -> dict[str, int]:
    """Return /proc/meminfo in bytes; "MemAvailable" is there (kernels before 3.14: what is free)."""
    figures = {name: int(kib) << 10 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return {"MemAvailable": figures.get("MemFree", 0), **figures}


def cgroups(cgroup: str, mountinfo: str) -> Iterator[tuple[int, PurePosixPath]]:
    """Yield (version, folder) of the memory groups of this process, its own first, each parent up to the mount's root.

    cgroup, mountinfo: the texts of /proc/self/cgroup and /proc/self/mountinfo. In a container the group's path is
    often that of the host, and only the mount's root (the fourth field) says what of it is visible, and where.
    """
    paths: dict[int, PurePosixPath] = {}
    for line in cgroup.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths[2] = PurePosixPath(path)
        elif "memory" in controllers.split(","):
            paths[1] = PurePosixPath(path)
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        version = 2 if kind[0] == "cgroup2" else 1 if kind[0] == "cgroup" and "memory" in kind[2].split(",") else 0
        if version not in paths:
            continue
        mount_root, mount_point = PurePosixPath(fields[3]), PurePosixPath(fields[4])
        own = paths.pop(version)
        seen = own.is_relative_to(mount_root) and ".." not in own.parts
        group = mount_point / own.relative_to(mount_root) if seen else mount_point
        yield version, group
        while group != mount_point:
            group = group.parent
            yield version, group


def stat(text: str) -> dict[str, int]:
    """Return a memory.stat as numbers."""
    return {name: int(value) for name, value in re.findall(r"^(\S+) (\d+)$", text, re.MULTILINE)}


def _free_v2(root: Path, group: PurePosixPath) -> int | None:
    limit = _read(root / str(group).lstrip("/") / "memory.max").strip()
    if not limit.isdigit():  # "max", or the root group, which has no such file
        return None
    figures = stat(_read(root / str(group).lstrip("/") / "memory.stat"))
    names = _USED_V2 if "kernel" in figures else (*_USED_V2, *_KERNEL_BEFORE_5_18)
    return int(limit) - sum(figures.get(name, 0) for name in names)


def _free_v1(root: Path, group: PurePosixPath) -> int | None:
    folder = root / str(group).lstrip("/")
    limit = _read(folder / "memory.limit_in_bytes").strip()
    if not limit.isdigit() or int(limit) >= _NO_LIMIT:
        return None
    figures = stat(_read(folder / "memory.stat"))
    kernel = _read(folder / "memory.kmem.usage_in_bytes").strip()
    return int(limit) - sum(figures.get(name, 0) for name in _USED_V1) - int(kernel or 0)


def _read(path: Path) -> str:
    """Return the text of a file of the kernel, "" where this kernel or container does not have it."""
    try:
        return path.read_text()
    except OSError:
        return ""


def process_bytes(pid: int) -> int:
    """Return the bytes that go when process ``pid`` does: its own pages, and its share of memory files.

    Mapped files do not count: they are page cache. 0 for a process that is gone.
    """
    rollup = meminfo(_read(Path(f"/proc/{pid}/smaps_rollup")))
    return rollup.get("Pss_Anon", 0) + rollup.get("Pss_Shmem", 0)
