"""A model's tensors as one block of bytes: where each lies in it, putting them there, and views on it.

    {name: dtype, shape} ──lay_out──> Layout: each tensor at a multiple of 256, tied ones once
    block + Layout ──views──> {name: tensor}, on whatever device the block is

Does not cover: where blocks lie and when they move (``memory/blocks``), modules that authors built (``model/adopt``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

import torch

from container.memory.align import ALIGN_BYTES, aligned

__all__ = ["ALIGN_BYTES", "Layout", "Packed", "Shape", "lay_out", "pack", "views"]


class Shape(NamedTuple):
    """One tensor of a block. ``tie``: tensors with the same (and not None) are one piece of memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    tie: Hashable = None

    @property
    def bytes(self) -> int:
        """What it takes, without alignment."""
        return math.prod(self.shape) * self.dtype.itemsize


class Layout(NamedTuple):
    """Where the tensors of a block lie: name -> offset in bytes; ``bytes``: size of the block, a multiple of 256."""

    bytes: int
    shapes: dict[str, Shape]
    starts: dict[str, int]


class Packed(NamedTuple):
    """Tensors as views on one ``block`` (uint8, one dimension); its size is what they cost on that device."""

    block: torch.Tensor
    tensors: dict[str, torch.Tensor]


def lay_out(shapes: Mapping[str, Shape]) -> Layout:
    """Return the places of ``shapes`` in one block, in their order."""
    ties: dict[Hashable, int] = {}
    starts: dict[str, int] = {}
    size = 0
    for name, shape in shapes.items():
        starts[name] = size if shape.tie is None else ties.setdefault(shape.tie, size)
        if starts[name] == size:
            size += aligned(shape.bytes)
    return Layout(size, dict(shapes), starts)


def views(block: torch.Tensor, layout: Layout) -> dict[str, torch.Tensor]:
    """Return the tensors that lie in ``block`` (uint8, one dimension) by ``layout``."""
    return {
        name: block[start : start + shape.bytes].view(shape.dtype).view(shape.shape)
        for (name, shape), start in zip(layout.shapes.items(), layout.starts.values(), strict=True)
    }


def tie_of(tensor: torch.Tensor) -> Hashable:
    """Return what tied tensors (same memory, shape and strides) have in common; None for an empty one."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else None


def _same(tensor: torch.Tensor) -> torch.dtype:
    return tensor.dtype


def pack(
    tensors: Mapping[str, torch.Tensor],
    device: str = "cpu",
    dtype_of: Callable[[torch.Tensor], torch.dtype] = _same,
) -> Packed:
    """Copy ``tensors`` into one block on ``device`` ("cpu", "cuda:0"), converted to ``dtype_of`` each.

    Tied tensors stay tied and are stored once. Returns when the bytes are there.
    """
    layout = lay_out({n: Shape(dtype_of(t), tuple(t.shape), tie_of(t)) for n, t in tensors.items()})
    block = torch.empty(layout.bytes, dtype=torch.uint8, device=device)
    packed = views(block, layout)
    filled: set[int] = set()
    for name, start in layout.starts.items():
        if start not in filled and tensors[name].numel():
            packed[name].copy_(tensors[name])
            filled.add(start)
    return Packed(block, packed)
