"""Whether tensors are equal: a fingerprint says where to look, comparing every byte proves it."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import TypeVar

import torch
import xxhash

from container.memory.samples import samples

_Key = TypeVar("_Key")
#: Bytes sampled at the start, in the middle and at the end of a tensor.
SAMPLE_BYTES = 256
#: Of a fingerprint.
PRINT_BYTES = 16
#: Less than this in common is left as it is: a block of its own would cost more than it saves.
LEAST_BYTES = 1 << 16
_libc = ctypes.CDLL(None)
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def fingerprints(tensors: Mapping[_Key, torch.Tensor], salt: str = "") -> dict[_Key, bytes]:
    """Return 16 bytes for each of ``tensors`` that equal ones (dtype, shape, bytes) of one ``salt`` have in common.

    A hint, no proof. tensors: contiguous, on the CPU.
    """
    found = {}
    for (name, tensor), sample in zip(tensors.items(), samples(tensors.values(), SAMPLE_BYTES), strict=True):
        digest = xxhash.xxh3_128(f"{salt}\0{tensor.dtype}\0{tuple(tensor.shape)}".encode())
        digest.update(sample)
        found[name] = digest.digest()
    return found


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two contiguous CPU tensors are the same dtype, shape and bytes (NaN equals NaN, 0.0 is not -0.0)."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.data_ptr() == other.data_ptr():
        return True
    return bool(_libc.memcmp(one.data_ptr(), other.data_ptr(), one.nbytes) == 0)
