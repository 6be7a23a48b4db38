"""What the kernel and the C library are asked about memory."""

from __future__ import annotations

import ctypes

from container.memory.pages import trim_heap
from tests.makers import anonymous_bytes


def test_memory_that_lies_free_before_an_allocation_is_given_back() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    taken = [libc.malloc(4000) for _ in range(10_000)]
    for start in taken:
        ctypes.memset(start, 1, 4000)
    for start in taken[:-1]:
        libc.free(start)
    before = anonymous_bytes()
    trim_heap()
    given_back = before - anonymous_bytes()
    libc.free(taken[-1])
    assert given_back > 30_000_000 or not hasattr(libc, "malloc_trim")
