"""One weight file mapped into this process, for as long as somebody has a tensor on it.

The mapping is private and has no descriptor: a stray write changes a page of this process, never the file. Parts of it
may be anonymous memory with the same bytes (``memory/pieces``) or, once the file was cut, with zeros.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch

from container.memory.pages import PIECE_BYTES, map_anonymous, map_file, move, unmap
from container.memory.pieces import Pieces, read_piece


class FileMapping:
    """The first ``size`` bytes of ``path``. Raises OSError, MemoryError, ValueError if the file is shorter."""

    def __init__(self, path: Path, size: int) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size < size:
                raise ValueError(f"{path.name} is shorter than {size} bytes")
            self.start = map_file(descriptor, size)
        finally:
            os.close(descriptor)
        self.size = size
        #: Where pieces lie, how large each is, and to whom it goes.
        self._laid: dict[int, tuple[int, Pieces]] = {}
        # Not at exit: what C++ keeps until then is never told.
        weakref.finalize(self, _unmap, self.start, size, self._laid).atexit = False

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """The mapping as numpy sees it: an array that keeps it, and a tensor on that keeps the array."""
        return {"version": 3, "shape": (self.size,), "typestr": "|u1", "data": (self.start, False)}

    def storage(self) -> torch.UntypedStorage:
        """Return a storage that is the mapping, and keeps it."""
        return torch.from_numpy(np.asarray(self)).untyped_storage()

    @property
    def laid_bytes(self) -> int:
        """What of it is memory of its own."""
        return sum(size for size, _ in list(self._laid.values()))

    def has_laid(self, start: int) -> bool:
        """Whether a piece lies at the address ``start``."""
        return start in self._laid

    def fetch(self, descriptor: int, start: int, pieces: Pieces) -> None:
        """Read what is mapped at the address ``start`` into one of ``pieces`` and put that in its place.

        descriptor: the file, opened to be read past the page cache. Raises OSError, MemoryError.
        """
        size = min(PIECE_BYTES, self.start + self.size - start)
        piece = pieces.take(size)
        try:
            read_piece(descriptor, start - self.start, piece, size)
            move(piece, size, start)
        except BaseException:
            pieces.give(piece, size)
            raise
        self._laid[start] = size, pieces

    def restore(self, descriptor: int) -> None:
        """Map the file again where pieces lie: the same bytes, in memory that the kernel can take. Raises MemoryError.

        descriptor: the file, unchanged since.
        """
        for start, (size, _) in list(self._laid.items()):
            map_file(descriptor, size, at=start, offset=start - self.start)
            del self._laid[start]

    def blank(self) -> None:
        """Put zeros in the place of all of it. Raises MemoryError."""
        map_anonymous(self.size, at=self.start)
        self._laid.clear()


def _unmap(start: int, size: int, laid: dict[int, tuple[int, Pieces]]) -> None:
    """Give up a mapping that nobody refers to; pieces go where they came from."""
    at = start
    for piece, (nbytes, pieces) in sorted(laid.items()):
        unmap(at, piece - at)
        pieces.give(piece, nbytes)  # as it stands: an address is as good as another
        at = piece + nbytes
    unmap(at, start + size - at)
