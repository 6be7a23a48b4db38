"""A device that is not there: BERTH_DEVICE=sim:4GiB@2GB/s. It exercises every line of the tiers but the CUDA calls.

Its memory is RAM, as much as was set and refused beyond that; its copies are real copies by one thread, each as slow as
the bandwidth set; computing is the CPU's. A copy's bytes arrive at its very end, and what is dropped becomes NaN: who
reads too early or too late is wrong and not lucky.
"""

from __future__ import annotations

import mmap
import queue
import threading
import time
import weakref
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
        self._free = self.spec.bytes
        self._lock = threading.RLock()  # what is given back may be so while another block is made
        self._jobs: queue.SimpleQueue[tuple[list[Piece], _Flag]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="copies", daemon=True).start()

    def block(self, nbytes: int) -> torch.Tensor:
        """Return RAM, the device's again once nobody refers to it; its pages cost something once they are written."""
        with self._lock:
            if nbytes > self._free:
                raise torch.OutOfMemoryError(
                    f"{nbytes} bytes are asked for, {self._free} of {self.spec.bytes} bytes are free"
                )
            self._free -= nbytes
        mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        weakref.finalize(mapping, self._take_back, nbytes)
        return torch.frombuffer(mapping, dtype=torch.uint8)

    def _take_back(self, nbytes: int) -> None:
        with self._lock:
            self._free += nbytes

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
        """Return what of the size set nobody has."""
        return self._free

    def _run(self) -> None:
        free_at = 0.0
        while True:
            pieces, flag = self._jobs.get()
            nbytes = sum(source.numel() for _, source in pieces)
            free_at = max(time.monotonic(), free_at) + nbytes / self.spec.bytes_per_s
            time.sleep(max(0.0, free_at - time.monotonic()))
            while pieces:
                _copy(*pieces.pop(0))  # keeps no piece: who is told that it is done may give the memory back
            flag.set()


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source)
