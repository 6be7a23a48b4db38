"""What the kernel is asked about this process's memory: maps, moves and advice, each a call that lets go of Python.

    map_file, map_anonymous ──> address ──> move, advise ──> unmap

Whoever calls answers for the addresses: what is unmapped here may be somebody else's in the next moment.
"""

from __future__ import annotations

import ctypes
import mmap
import os

#: Work on mappings is done in pieces: the kernel holds the process's memory map meanwhile, which others want to change.
PIECE_BYTES = 8 << 20
HUGE_BYTES = 2 << 20
#: Since Linux 5.4 and 5.14; not in Python's mmap.
COLD, POPULATE_READ = 20, 22

_MAP_FIXED = 0x10
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = _libc.mremap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mprotect.argtypes = _libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def map_file(descriptor: int, size: int, at: int | None = None, offset: int = 0) -> int:
    """Return the address of a private mapping of ``size`` bytes of a file: a large one at a huge page, or ``at``.

    Raises MemoryError.
    """
    if at is not None or size < PIECE_BYTES:
        return _map(at, size, mmap.MAP_PRIVATE, descriptor, offset)
    area = _aligned(size)
    try:
        return _map(area, size, mmap.MAP_PRIVATE, descriptor, offset)
    except MemoryError:
        unmap(area, size)
        raise


def map_anonymous(size: int, at: int | None = None) -> int:
    """Return the address of zeros: anywhere, or ``at``, in place of what is mapped there. Raises MemoryError."""
    return _map(at, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def map_huge(size: int) -> int:
    """Return the address of zeros in huge pages, as far as there are such. Raises MemoryError."""
    start = _aligned(size)
    advise(start, size, mmap.MADV_HUGEPAGE)
    return start


def move(start: int, size: int, to: int) -> None:
    """Move pages with what they hold to another address, in one step, in place of what is mapped there.

    Nothing is mapped at ``start`` any more. Raises OSError.
    """
    if _libc.mremap(start, size, size, _MREMAP_MAYMOVE | _MREMAP_FIXED, to) != to:
        raise OSError(ctypes.get_errno(), "pages could not be moved")


def unmap(start: int, size: int) -> None:
    """Give up what is mapped there."""
    if size:
        _libc.munmap(start, size)


def forbid_writing(start: int, size: int) -> None:
    """End the process if it writes there from now on. Raises OSError."""
    if _libc.mprotect(start, size, mmap.PROT_READ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def advise(start: int, size: int, advice: int) -> bool:
    """Tell the kernel what is going to be done with pages; False if it does not do as it is told."""
    return bool(_libc.madvise(start, size, advice) == 0)


def trim_heap() -> None:
    """Give whole pages that lie free between allocations back; half a millisecond after a load. Only glibc can."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(ctypes.c_size_t(0))


def _aligned(size: int) -> int:
    """Return the address of ``size`` bytes of nothing yet, at a huge page."""
    size += -size % mmap.PAGESIZE
    area = map_anonymous(size + HUGE_BYTES)
    start = area + -area % HUGE_BYTES
    unmap(area, start - area)
    unmap(start + size, area + HUGE_BYTES - start)
    return start


def _map(at: int | None, size: int, flags: int, descriptor: int = -1, offset: int = 0) -> int:
    flags |= 0 if at is None else _MAP_FIXED
    address = _libc.mmap(at, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, offset)
    if address == _FAILED:
        raise MemoryError(f"{size} bytes could not be mapped: {os.strerror(ctypes.get_errno())}")
    return int(address)
