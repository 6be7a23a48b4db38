"""What the disk itself gives: files out of the page cache, and reads past it."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Iterator, Sequence
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


def raw_read(files: Sequence[Path], readers: int, seconds: float = 0.0) -> float:
    """Return bytes a second of reading ``files`` past the page cache with ``readers`` threads; buffered if refused.

    One after the other, over and over until so many seconds have passed, but each once at least: a disk may give more
    for the tenth of a second after a rest than it does for long. Into huge pages, where there are any: into others the
    same disk gave less than half (1.6 against 4 GB/s here), for each 4 KiB is then a transfer of its own.
    """
    for path in files:
        forget_cached(path)
    opened = [(_open(path), path.stat().st_size) for path in files]
    memory = _memory(readers * _PIECE_BYTES)
    taking = threading.Lock()

    def pieces() -> Iterator[tuple[int, int]]:
        """Yield the descriptor and the place of what is to be read next."""
        while True:
            for descriptor, size in opened:
                yield from ((descriptor, start) for start in range(0, size, _PIECE_BYTES))
            if time.perf_counter() >= began + seconds:
                return

    def read(reader: int) -> int:
        own, done = memory[reader * _PIECE_BYTES : (reader + 1) * _PIECE_BYTES], 0
        while True:
            with taking:
                piece = next(todo, None)
            if piece is None:
                return done
            done += os.preadv(piece[0], [own], piece[1])

    with ThreadPoolExecutor(readers) as pool:
        began, todo = time.perf_counter(), pieces()
        rate = sum(pool.map(read, range(readers))) / (time.perf_counter() - began)
    for descriptor, _ in opened:
        os.close(descriptor)
    return rate


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return os.open(path, os.O_RDONLY)


def _memory(nbytes: int) -> memoryview:
    """Return memory that begins at a huge page, all of it there."""
    mapped = mmap.mmap(-1, nbytes + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapped.madvise(mmap.MADV_HUGEPAGE)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(mapped)) % _HUGE_PAGE_BYTES
    memory = memoryview(mapped)[start : start + nbytes]
    for page in range(0, nbytes, mmap.PAGESIZE):
        memory[page] = 1
    return memory
