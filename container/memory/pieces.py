"""Weights in memory of their own, read past the page cache, where that has no room for them.

Under a limit that models fill, each page that a file brings into the page cache has to be taken from somebody first, a
page at a time, and goes again before its model is called again. So the file is read into anonymous memory, a piece at a
time, and the piece is laid over the place in the mapping where the same bytes lie: whoever reads there finds them
before and after. What a model that sinks leaves goes to the next one that rises, because new memory is zeroed first (a
fifth of the time of a read; much more in a virtual machine that has given it back to its host meanwhile).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os

from container.memory.pages import PIECE_BYTES, map_huge, unmap


class Pieces:
    """Pieces that models left for those that come up. From any thread: lists and numbers change in one step."""

    def __init__(self) -> None:
        self._spare: list[int] = []
        self._most = 0

    @property
    def spare_bytes(self) -> int:
        """What lies here and is nobody's."""
        return len(self._spare) * PIECE_BYTES

    def expect(self, nbytes: int) -> None:
        """Keep no more than that many bytes from now on: what is going to be read soon."""
        self._most = nbytes // PIECE_BYTES
        while len(self._spare) > self._most:
            self._free_one()

    def take(self, size: int) -> int:
        """Return the address of ``size`` bytes, a piece at most; what they hold means nothing. Raises MemoryError."""
        if size == PIECE_BYTES:
            with contextlib.suppress(IndexError):
                return self._spare.pop()
        return map_huge(size)

    def give(self, start: int, size: int) -> None:
        """Take back what nobody refers to; only whole pieces are of use to others."""
        if size < PIECE_BYTES:
            unmap(start, size)
            return
        self._spare.append(start)
        if len(self._spare) > self._most:
            self._free_one()

    def trim(self) -> None:
        """Give up all that nobody has."""
        while self._spare:
            self._free_one()

    def _free_one(self) -> None:
        with contextlib.suppress(IndexError):  # somebody may just have taken the last
            unmap(self._spare.pop(), PIECE_BYTES)


def read_piece(descriptor: int, offset: int, start: int, size: int) -> None:
    """Read ``size`` bytes at ``offset`` of a file to the address ``start``, which is followed by what fills a page.

    descriptor: may ask for whole pages. Raises OSError, also for a file that was cut short.
    """
    into = memoryview((ctypes.c_char * (size + -size % mmap.PAGESIZE)).from_address(start)).cast("B")
    done = 0
    while done < size:
        got = os.preadv(descriptor, [into[done:]], offset + done)
        if got == 0:
            raise OSError("the file has become shorter")
        done += got
