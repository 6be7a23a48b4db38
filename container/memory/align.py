"""How tensors are aligned in blocks; no torch."""

from __future__ import annotations

#: Enough for any vector load of a CPU and for coalesced loads of a GPU.
ALIGN_BYTES = 256


def aligned(nbytes: int) -> int:
    """Return ``nbytes`` rounded up to a multiple of 256."""
    return -(-nbytes // ALIGN_BYTES) * ALIGN_BYTES
