"""What the tiers need of a device with memory of its own: a GPU (``cuda``), or a rehearsal of one (``sim``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch

from container.memory.arena import Event

#: (target, source): uint8, one dimension, the same length.
Piece = tuple[torch.Tensor, torch.Tensor]


class Device(Protocol):
    """Memory, one queue of copies into it, and computing beside them. Any thread may call."""

    #: As BERTH_DEVICE names it.
    name: str
    #: Torch's name of the device that tensors here have and handlers compute on.
    compute: str

    def block(self, nbytes: int) -> torch.Tensor:
        """Return ``nbytes`` uint8 of the device's memory. Raises torch.OutOfMemoryError."""

    def pin(self, memory: torch.Tensor) -> bool:
        """Lock ``memory`` (host, uint8), so that copies from it run by themselves; False where that is refused."""

    def unpin(self, memory: torch.Tensor) -> None:
        """Undo ``pin``, before the memory is given up."""

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Return ``nbytes`` of host memory that is locked already. Raises RuntimeError."""

    def copy(self, pieces: Iterable[Piece]) -> Event:
        """Queue the copies, in order, behind those queued before; the event passes when the last of them is done."""

    def mark(self) -> Event:
        """Return an event that passes when all computing submitted so far is done."""

    def drop(self, memory: torch.Tensor) -> None:
        """Nothing will read ``memory`` (of the device) any more."""

    def trim(self) -> None:
        """Give memory that was given up back to the driver, for other processes."""

    def free_bytes(self) -> int:
        """Return the bytes of the device that nobody uses."""
