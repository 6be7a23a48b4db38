"""The CUDA calls of the tiers, all of them. Not yet run on a GPU: written from torch's sources (2.13) and speed.md.

Copies run on a stream of their own, which torch makes non-blocking: the legacy default stream, on which every lane
computes, does not wait for it. Host memory is locked by cudaHostRegister: torch's own pinned allocator rounds each
block up to a power of two (speed.md, section 2c). Memory locked that way is unknown to torch's bookkeeping of streams,
so ``blocks`` keeps a slot until the copies out of it have passed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, cast

import torch

from container.memory.arena import Event
from container.memory.device import Piece

#: Parts of torch.cuda are not annotated.
_cuda: Any = torch.cuda
_PORTABLE = 1  # cudaHostRegisterPortable: locked for every context of the process


class CudaDevice:
    """See ``memory/device``; ``name`` and ``compute`` are "cuda:N"."""

    def __init__(self, name: str) -> None:
        self.name = self.compute = name
        self._device = torch.device(name)
        _cuda.init()
        self._copies = _cuda.Stream(self._device)

    def block(self, nbytes: int) -> torch.Tensor:
        """Return device memory from torch's allocator; blocks this large are a cudaMalloc of their own."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def pin(self, memory: torch.Tensor) -> bool:
        """Register ``memory``, written once before, which is the fastest way to get its pages."""
        memory.zero_()
        with _cuda.device(self._device):
            done = int(_cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), _PORTABLE)) == 0
            if not done:  # CUDA remembers the error, and torch would blame the next kernel for it: let this one be it
                with contextlib.suppress(RuntimeError):
                    torch.ones(1, device=self._device)  # not zeros, which may be no kernel but a memset
        return done

    def unpin(self, memory: torch.Tensor) -> None:
        """Unregister ``memory``."""
        with _cuda.device(self._device):
            _cuda.cudart().cudaHostUnregister(memory.data_ptr())

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Return memory of torch's pinned allocator, which takes the next power of two for it."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, pieces: Iterable[Piece]) -> Event:
        """Queue one cudaMemcpyAsync a piece on the copy stream."""
        with _cuda.stream(self._copies):
            for target, source in pieces:
                target.copy_(source, non_blocking=True)
            event = _cuda.Event()
            event.record(self._copies)
        return cast(Event, event)

    def mark(self) -> Event:
        """Record an event on the stream that all lanes compute on (no thread of ours sets another)."""
        event = _cuda.Event()
        event.record(_cuda.default_stream(self._device))
        return cast(Event, event)

    def drop(self, memory: torch.Tensor) -> None:
        """Nothing: the next owner overwrites it."""

    def trim(self) -> None:
        """Return cached, free blocks to the driver."""
        _cuda.empty_cache()

    def free_bytes(self) -> int:
        """Return what cudaMemGetInfo says is free, and what torch's allocator keeps for itself."""
        kept = _cuda.memory_reserved(self._device) - _cuda.memory_allocated(self._device)
        return int(_cuda.mem_get_info(self._device)[0] + kept)
