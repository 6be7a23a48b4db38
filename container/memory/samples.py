"""A few bytes of each of many tensors, fetched in one call.

The interpreter's lock must be let go where mapped weights are read (``memory/mapped``). To let go of it once for each
of 600 short copies is worse than not at all: a batch that waits for it wakes up each time to find it taken again, and
stands still as long as it all takes (10 ms for the 200 tensors of a BERT). So everything is fetched in one go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch


class _Rows:
    """Stretches of one storage, ``width`` bytes each, to be fetched together."""

    def __init__(self, storage: torch.UntypedStorage, width: int) -> None:
        self._whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        self._width = min(width, self._whole.numel())
        self._starts: list[int] = []

    def add(self, start: int, nbytes: int) -> slice:
        """Want ``nbytes`` from byte ``start``; return where they will be in what ``fetch`` returns."""
        begin = min(start, self._whole.numel() - self._width)
        at = len(self._starts) * self._width + start - begin
        self._starts.append(begin)
        return slice(at, at + nbytes)

    def fetch(self) -> memoryview:
        """Return the rows, one after another."""
        if not self._starts:
            return memoryview(b"")
        overlapping = self._whole.as_strided((self._whole.numel() - self._width + 1, self._width), (1, 1))
        return overlapping.index_select(0, torch.tensor(self._starts)).numpy().reshape(-1).data


def samples(tensors: Iterable[torch.Tensor], nbytes: int) -> Iterator[bytes]:
    """Yield ``nbytes`` each from the start, the middle and the end of every tensor; all of one that has no more.

    tensors: contiguous, on the CPU.
    """
    storages: dict[tuple[int, int], _Rows] = {}
    places: list[tuple[_Rows, list[slice]]] = []
    for tensor in tensors:
        storage, size = tensor.untyped_storage(), tensor.nbytes
        key = (storage.data_ptr(), storage.nbytes())
        if key not in storages:
            storages[key] = _Rows(storage, nbytes)
        rows, first, last = storages[key], tensor.data_ptr() - storage.data_ptr(), max(0, size - nbytes)
        starts = sorted({0, last // 2, last}) if size else []
        places.append((rows, [rows.add(first + start, min(nbytes, size - start)) for start in starts]))
    fetched = {rows: rows.fetch() for rows in storages.values()}
    for rows, slices in places:
        yield b"".join(fetched[rows][place] for place in slices)
