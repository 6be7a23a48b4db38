"""What the disk itself gives: files out of the page cache, and reads past it."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PIECE_BYTES = 8 << 20
_HUGE_PAGE_BYTES = 2 << 20


def forget_cached(path: Path) -> None:
    """Take ``path`` out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def raw_read(path: Path, readers: int) -> float:
    """Return bytes a second of reading ``path`` past the page cache with ``readers`` threads; buffered if refused.

    Into huge pages, where there are any: into others the same disk gave less than half (1.6 against 4 GB/s here), for
    each 4 KiB is then a transfer of its own.
    """
    forget_cached(path)
    size = path.stat().st_size
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        descriptor = os.open(path, os.O_RDONLY)
    memory = _memory(readers * _PIECE_BYTES)

    def read(reader: int) -> None:
        own = memory[reader * _PIECE_BYTES : (reader + 1) * _PIECE_BYTES]
        for start in range(reader * _PIECE_BYTES, size, readers * _PIECE_BYTES):
            os.preadv(descriptor, [own], start)

    with ThreadPoolExecutor(readers) as pool:
        began = time.perf_counter()
        list(pool.map(read, range(readers)))
        took = time.perf_counter() - began
    os.close(descriptor)
    return size / took


def _memory(nbytes: int) -> memoryview:
    """Return memory that begins at a huge page, all of it there."""
    mapped = mmap.mmap(-1, nbytes + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapped.madvise(mmap.MADV_HUGEPAGE)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(mapped)) % _HUGE_PAGE_BYTES
    memory = memoryview(mapped)[start : start + nbytes]
    for page in range(0, nbytes, mmap.PAGESIZE):
        memory[page] = 1
    return memory
