"""The memory under an author's modules: which of it may be another, and putting another in its place.

A storage can be exchanged for one with the same bytes while nothing of its model runs: each tensor in it stays the
object that the author may hold, with its layout, and tied ones stay tied. It is left alone where somebody else may know
it, for they would go on with the old one: another tensor, a numpy array on it or under it, a list of the author's, or
code that computes with it at this moment. So are TorchScript, whose tensors C++ holds, tensors of which torch counts no
writes, and all of a model that is opaque (``model/adopt``).

Not seen: an address that code has noted, and an array under a tensor that lies deeper than modules and what has them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from container.model import adopt

#: What is smaller stays where it is: the kernel copies whole pages where somebody writes.
LEAST_BYTES = 4096


@dataclass(slots=True)
class Stored:
    """One storage and all that modules have in it. places: where in modules each tensor is.

    marks: what changes when a tensor is written to, or laid out anew.
    """

    memory: torch.UntypedStorage
    tensors: list[torch.Tensor]
    places: list[int]
    marks: list[tuple[int, int]]

    @property
    def bytes(self) -> int:
        """Of the storage."""
        return self.memory.nbytes()

    @property
    def start(self) -> int:
        """Its address."""
        return self.memory.data_ptr()

    def content(self) -> torch.Tensor:
        """Return its bytes; while somebody has them, it is not free."""
        return whole(self.memory)

    def is_free(self) -> bool:
        """Whether it is as it was found, nobody knows it but these tensors, and nobody knows them but their modules."""
        return self.marks == [_mark(tensor) for tensor in self.tensors] and self.strangers() == _NOBODY

    def strangers(self) -> tuple[int, int, int]:
        """Return how many references there are beyond those of modules: to its tensors, to its memory, in C++ to it.

        More than nought each, as some are this object's and some are torch's; ``_NOBODY`` says how many.
        """
        counting: Any = torch._C
        known = [sys.getrefcount(tensor) - places for tensor, places in zip(self.tensors, self.places, strict=True)]
        uses = counting._storage_Use_Count(self.memory._cdata) - len(self.tensors)
        return max(known), sys.getrefcount(self.memory), uses

    def move(self, memory: torch.UntypedStorage) -> bool:
        """Have the tensors lie in ``memory``, which holds the same bytes; False if it is not free any more."""
        if not self.is_free():
            return False
        for tensor in self.tensors:
            there = torch.empty(0, dtype=tensor.dtype)
            tensor.data = there.set_(memory, tensor.storage_offset(), tensor.size(), tensor.stride())
        return True


def _nobody() -> tuple[int, int, int]:
    """Return the ``strangers`` of a tensor that nobody has."""
    tensors = [torch.empty(1)]
    return Stored(tensors[0].untyped_storage(), tensors, [0], []).strangers()


_NOBODY = _nobody()


def whole(memory: torch.UntypedStorage) -> torch.Tensor:
    """Return ``memory`` as bytes."""
    return torch.empty(0, dtype=torch.uint8).set_(memory)


def find(value: Any) -> list[Stored]:
    """Return the storages under the parameters and buffers of all modules inside ``value``; [] if it is opaque."""
    if adopt.opaque(value):
        return []
    found = adopt.finds(value)
    parts = [part for module in found.modules for part in module.modules()]
    places, tensors = _tensors(parts)
    attributes = [value for part in parts for value in list(vars(part).values()) if isinstance(value, np.ndarray)]
    arrays = [_span(array) for array in (*found.arrays, *attributes)]
    storages: dict[int, Stored] = {}
    for key, tensor in tensors.items():
        memory = tensor.untyped_storage()
        if memory.nbytes() < LEAST_BYTES or _overlaps(memory, arrays):
            continue
        stored = storages.setdefault(memory._cdata, Stored(memory, [], [], []))
        stored.tensors.append(tensor)
        stored.places.append(places[key])
        stored.marks.append(_mark(tensor))
    return [stored for stored in storages.values() if all(map(_is_plain, stored.tensors))]


def _tensors(parts: Sequence[Any]) -> tuple[Counter[int], dict[int, torch.Tensor]]:
    """Return how often each tensor is had by ``parts``, and each tensor, by its identity."""
    places: Counter[int] = Counter()
    tensors: dict[int, torch.Tensor] = {}
    for part in {id(part): part for part in parts}.values():
        if isinstance(part, torch.jit.ScriptModule):
            continue
        flat = part.__dict__.get("_flat_weights") or ()  # of an LSTM: its parameters once more
        for tensor in (*part._parameters.values(), *part._buffers.values(), *flat):
            if tensor is not None:
                places[id(tensor)] += 1
                tensors[id(tensor)] = tensor
    return places, tensors


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.grad_fn is None
        and not (tensor.is_inference() or tensor.is_conj() or tensor.is_neg())
    )


def _mark(tensor: torch.Tensor) -> tuple[int, int]:
    return (0 if tensor.is_inference() else tensor._version), tensor.data_ptr()


def _span(array: np.ndarray[Any, Any]) -> tuple[int, int]:
    """Return where the memory of a numpy array begins and ends, all of it if it is a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.ctypes.data, array.ctypes.data + array.nbytes


def _overlaps(memory: torch.UntypedStorage, spans: Sequence[tuple[int, int]]) -> bool:
    start, end = memory.data_ptr(), memory.data_ptr() + memory.nbytes()
    return any(first < end and start < last for first, last in spans)
