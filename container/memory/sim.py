"""A device that is not there: BERTH_DEVICE=sim:4GiB@2GB/s. It exercises every line of the tiers but the CUDA calls.

Its memory is RAM, its copies are real copies by one thread, each as slow as the bandwidth set, and computing is the
CPU's. A copy's bytes arrive at its very end, and what is dropped becomes NaN: who reads too early or too late is wrong
and not lucky.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

import torch

from container.memory.arena import Event
from container.memory.device import Piece
from container.settings import size_bytes


class Spec(NamedTuple):
    """sim:SIZE@SPEED/s in bytes and bytes a second."""

    bytes: int
    bytes_per_s: int

    @staticmethod
    def read(text: str) -> Spec:
        """Return the Spec of "sim:4GiB@2GB/s"; settings has checked the text."""
        size, speed = text.removeprefix("sim:").removesuffix("/s").split("@", 1)
        return Spec(size_bytes(size), max(1, size_bytes(speed)))


class _Flag:
    """An event that a thread sets."""

    def __init__(self, passed: bool = False) -> None:
        self._flag = threading.Event()
        if passed:
            self._flag.set()

    def query(self) -> bool:
        """Return whether the copy is done."""
        return self._flag.is_set()

    def synchronize(self) -> None:
        """Wait until the copy is done."""
        self._flag.wait()

    def set(self) -> None:
        """Say that the copy is done."""
        self._flag.set()


class SimDevice:
    """See ``memory/device``."""

    compute = "cpu"

    def __init__(self, name: str) -> None:
        self.name = name
        self.spec = Spec.read(name)
        self._jobs: queue.SimpleQueue[tuple[list[Piece], _Flag]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="copies", daemon=True).start()

    def block(self, nbytes: int) -> torch.Tensor:
        """Return RAM; its pages cost something once they are written."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def pin(self, memory: torch.Tensor) -> bool:
        """Nothing is to be done for RAM."""
        return True

    def unpin(self, memory: torch.Tensor) -> None:
        """Nothing is to be done for RAM."""

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Return plain memory."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def copy(self, pieces: Iterable[Piece]) -> Event:
        """Queue the copies."""
        flag = _Flag()
        self._jobs.put((list(pieces), flag))
        return flag

    def mark(self) -> Event:
        """Return an event that has passed: the CPU computes while it is called."""
        return _Flag(passed=True)

    def drop(self, memory: torch.Tensor) -> None:
        """Overwrite ``memory`` with what is NaN in every floating dtype."""
        memory.fill_(0xFF)

    def trim(self) -> None:
        """Nothing is to be done for RAM."""

    def free_bytes(self) -> int:
        """Return the size set."""
        return self.spec.bytes

    def _run(self) -> None:
        free_at = 0.0
        while True:
            pieces, flag = self._jobs.get()
            nbytes = sum(source.numel() for _, source in pieces)
            free_at = max(time.monotonic(), free_at) + nbytes / self.spec.bytes_per_s
            time.sleep(max(0.0, free_at - time.monotonic()))
            for target, source in pieces:
                target.copy_(source)
            flag.set()
