"""Moving weights between tiers: for now one aligned block and a copy into it.

    {name: tensor anywhere} ──pack──> one block of bytes, each tensor at a multiple of 256, and views on it

Does not cover: arenas, page-locked memory and copy streams (issue 3), nor modules that authors built (``model/adopt``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

#: Enough for any vector load of a CPU and for coalesced loads of a GPU.
ALIGN_BYTES = 256


class Packed(NamedTuple):
    """Tensors as views on one ``block`` (uint8, one dimension); its size is what they cost on that device."""

    block: torch.Tensor
    tensors: dict[str, torch.Tensor]


def _same(tensor: torch.Tensor) -> torch.dtype:
    return tensor.dtype


def pack(
    tensors: Mapping[str, torch.Tensor],
    device: str = "cpu",
    dtype_of: Callable[[torch.Tensor], torch.dtype] = _same,
) -> Packed:
    """Copy ``tensors`` into one block on ``device`` ("cpu", "cuda:0"), converted to ``dtype_of`` each.

    Tied tensors (same memory, shape and strides) stay tied and are stored once. Returns when the bytes are there.
    """
    places: dict[tuple[object, ...], tuple[int, torch.Tensor]] = {}
    keys: dict[str, tuple[object, ...]] = {}
    size = 0
    for name, tensor in tensors.items():
        keys[name] = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() == 0:
            keys[name] = (name,)
        if keys[name] not in places:
            places[keys[name]] = (size, tensor)
            size += -(-tensor.numel() * dtype_of(tensor).itemsize // ALIGN_BYTES) * ALIGN_BYTES
    block = torch.empty(size, dtype=torch.uint8, device=device)
    views: dict[tuple[object, ...], torch.Tensor] = {}
    for key, (start, tensor) in places.items():
        dtype = dtype_of(tensor)
        views[key] = block[start : start + tensor.numel() * dtype.itemsize].view(dtype).view(tensor.shape)
        views[key].copy_(tensor)
    return Packed(block, {name: views[key] for name, key in keys.items()})


def to_device(tensors: Mapping[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
    """Return ``tensors`` on ``device``: as they are on a CPU (weights are never copied there), else in one block."""
    return dict(tensors) if torch.device(device).type == "cpu" else pack(tensors, device).tensors
