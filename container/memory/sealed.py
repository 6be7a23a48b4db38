"""Memory that nobody can write: a sealed, anonymous file, mapped read-only, with tensors in it.

``copy`` leaves no descriptor open; the memory goes with the last tensor on it. A write into such a tensor ends the
process (SIGSEGV), because the alternative is to change the answers of every model that shares it. Whoever maps a
``file`` for writing as well, privately, gets pages of its own where it writes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Mapping
from typing import TypeVar, cast

import torch

from container.memory import pages
from container.memory.tiers import ALIGN_BYTES

_Key = TypeVar("_Key")
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
#: The kernel writes no more than this at once.
_CHUNK = 1 << 30


def copy(tensors: Mapping[_Key, torch.Tensor]) -> tuple[int, dict[_Key, torch.Tensor]]:
    """Return (bytes taken, copies of ``tensors``) in one sealed block, each at a multiple of 256.

    tensors: contiguous, on the CPU. Raises OSError if there is no memory for it.
    """
    fd, size, starts = file(tensors)
    try:
        block = cast(torch.UntypedStorage, torch.UntypedStorage.from_file(f"/proc/self/fd/{fd}", False, size))
    finally:
        os.close(fd)
    pages.forbid_writing(block.data_ptr(), size)
    return size, {
        key: torch.empty(0, dtype=tensor.dtype).set_(
            block, starts[key] // tensor.itemsize, tensor.shape, tensor.stride()
        )
        for key, tensor in tensors.items()
    }


def file(tensors: Mapping[_Key, torch.Tensor], name: str = "berth-weights") -> tuple[int, int, dict[_Key, int]]:
    """Return (descriptor, size, where each begins) of a sealed file with ``tensors``, each at a multiple of 256.

    The caller closes the descriptor. tensors: contiguous, on the CPU. name: shown by /proc. Raises OSError if there is
    no memory for it.
    """
    starts: dict[_Key, int] = {}
    size = 0
    for key, tensor in tensors.items():
        starts[key] = size
        size += -(-tensor.nbytes // ALIGN_BYTES) * ALIGN_BYTES
    size = max(size, 1)
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        for key, tensor in tensors.items():
            _write(fd, tensor, starts[key])
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd, size, starts


def _write(fd: int, tensor: torch.Tensor, start: int) -> None:
    raw = memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")
    done = 0
    while done < tensor.nbytes:
        wrote = os.pwrite(fd, raw[done : done + _CHUNK], start + done)
        if wrote == 0:
            raise OSError(errno.ENOSPC, "no memory for a shared block")
        done += wrote
