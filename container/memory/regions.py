"""Arenas with memory behind them: one on the device, one in page-locked RAM under it.

    take(bytes) ──> Place: a uint8 view of exactly those bytes ──give(after events)──> free again

Both consist of extents. The device's grows in a few large ones (so that what the models of host children need is not
taken beforehand) and gives back those that are empty; several become one where what is asked for is larger than each.
The host's is one reserved range of addresses of which 256 MiB at a time are faulted in and registered, the next ones in
the background before they are needed; copies never cross such a step, because CUDA refuses to copy across two
registrations. Where registering is refused, extents come from torch's own pinned allocator. Models of host children
that keep a copy in RAM have it outside of these; for what they have (``HostRegion.outside_bytes``) empty steps at the
end are given back. Nothing is allocated, locked or freed on the request path unless room runs out under it.

Thread-safe: slots change hands under a lock that is never held while memory is made.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NamedTuple

import torch

from container import log
from container.memory.align import ALIGN_BYTES, aligned
from container.memory.arena import Arena, Event, Slot
from container.memory.device import Device, Piece

_log = log.get(__name__)
#: What is faulted in and registered at a time.
STEP_BYTES = 256 << 20
#: The device's arena grows in eighths of its limit, or in steps where that is less.
_PARTS = 8
#: Linux: pages are not promised beforehand. Python names it from 3.13 on or not at all.
_MAP_NORESERVE = 0x4000


@dataclass(slots=True, eq=False)
class Extent:
    """One piece of memory (uint8, one dimension) and who has which part of it."""

    memory: torch.Tensor
    arena: Arena


class Place(NamedTuple):
    """Bytes of a region that somebody has. ``memory``: uint8, as long as was asked for."""

    memory: torch.Tensor
    extent: Extent
    slot: Slot


class Region:
    """Extents up to ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit - limit % ALIGN_BYTES
        self._extents: list[Extent] = []
        self._lock = threading.Lock()
        self._growing = threading.Lock()

    def take(self, nbytes: int, tag: str) -> Place | None:
        """Return a place for ``nbytes``, growing if that helps; None if they do not fit in one piece."""
        place = self._cut(nbytes, tag)
        while place is None:
            with self._growing:
                place = self._cut(nbytes, tag)  # another thread may have grown it meanwhile
                if place is None and not self._grow(aligned(max(1, nbytes))):
                    return None
        return place

    def give(self, place: Place, after: Iterable[Event] = ()) -> None:
        """Return ``place``; it is used again once all of ``after`` have passed."""
        with self._lock:
            place.extent.arena.give(place.slot, after)

    def cheapest_run(self, nbytes: int, cost: Callable[[Slot], float | None]) -> list[str] | None:
        """Return the tags of the neighbours whose going makes room for ``nbytes`` and costs least; None if none can."""
        with self._lock:
            runs = [extent.arena.cheapest_run(aligned(nbytes), cost) for extent in self._extents]
        found = [run for run in runs if run is not None]
        return (
            [slot.tag for slot in min(found, key=lambda run: sum(cost(slot) or 0.0 for slot in run))] if found else None
        )

    @property
    def capacity(self) -> int:
        """Bytes of memory that there is."""
        return sum(extent.arena.capacity for extent in self._extents)

    @property
    def used_bytes(self) -> int:
        """Bytes that somebody has."""
        with self._lock:
            return sum(extent.arena.used_bytes for extent in self._extents)

    def _cut(self, nbytes: int, tag: str) -> Place | None:
        with self._lock:
            for extent in sorted(self._extents, key=lambda each: each.arena.largest_hole):
                slot = extent.arena.take(nbytes, tag)
                if slot is not None:
                    return Place(extent.memory[slot.start : slot.start + nbytes], extent, slot)
        return None

    def _grow(self, nbytes: int) -> bool:
        """Add memory towards a hole of ``nbytes``; False if there is no more to be had. Called under ``_growing``."""
        raise NotImplementedError


class DeviceRegion(Region):
    """Memory of the device."""

    def __init__(self, device: Device, limit: int) -> None:
        super().__init__(limit)
        self._device = device
        self._extent_bytes = min(self.limit, max(STEP_BYTES, aligned(self.limit // _PARTS)))

    def trim(self) -> None:
        """Give empty extents back to the driver, for whoever else wants memory of the device."""
        with self._growing:
            self._drop_empty()

    def cheapest_run(self, nbytes: int, cost: Callable[[Slot], float | None]) -> list[str] | None:
        """See Region; where no extent has such neighbours, all that lies in the cheapest extents to make one of."""
        run = super().cheapest_run(nbytes, cost)
        return self._cheapest_extents(aligned(nbytes), cost) if run is None else run

    def _cheapest_extents(self, nbytes: int, cost: Callable[[Slot], float | None]) -> list[str] | None:
        with self._lock:
            room = self.limit - self.capacity
            short = nbytes - room if nbytes > room else nbytes  # the limit has room, so it is the device that has none
            prices = [(extent.arena.price(cost), extent) for extent in self._extents]
        may_go = [(price / extent.arena.capacity, extent) for price, extent in prices if price is not None]
        chosen: list[Extent] = []
        for _, extent in sorted(may_go, key=lambda each: each[0]):
            if short > 0:
                chosen.append(extent)
                short -= extent.arena.capacity
        for extent in reversed(chosen.copy()):  # a large one chosen last may spare smaller ones
            if short + extent.arena.capacity <= 0:
                chosen.remove(extent)
                short += extent.arena.capacity
        return None if short > 0 else [slot.tag for extent in chosen for slot in extent.arena.slots]

    def _grow(self, nbytes: int) -> bool:
        if nbytes > self.limit - self.capacity:
            self._drop_empty()
        room = self.limit - self.capacity
        if nbytes > room:
            return False
        size = max(nbytes, self._extent_bytes)
        for wanted in dict.fromkeys((room if room < size + self._extent_bytes else size, nbytes)):
            try:
                memory = self._device.block(wanted)
            except torch.OutOfMemoryError as error:
                _log.warning("the device has no %d bytes for models: %s", wanted, str(error).partition("\n")[0])
                continue
            with self._lock:
                self._extents.append(Extent(memory, Arena(wanted)))
            return True
        return self._drop_empty() and self._grow(nbytes)

    def _drop_empty(self) -> bool:
        """Give empty extents back; return whether there were any. Called under ``_growing``."""
        with self._lock:
            empty = [each for each in self._extents if each.arena.largest_hole == each.arena.capacity]
            self._extents = [each for each in self._extents if each not in empty]
        if not empty:
            return False
        del empty
        self._device.trim()
        return True


class HostRegion(Region):
    """Page-locked RAM. ``background``: runs what grows it ahead of need.

    Does not cover: what is empty before a block that stays. It is locked, and what others have of the limit is taken
    beside it, so that both may be more than the limit; less than a step more where the limit ends inside one.
    """

    def __init__(self, device: Device, limit: int, background: Executor | None = None) -> None:
        super().__init__(limit)
        self._device = device
        self._background = background
        self._ahead = threading.Semaphore()
        self._registering = True
        #: What others have of the limit, outside of this memory.
        self.outside_bytes = 0
        self._mapping: mmap.mmap | None = None
        self._reserved: torch.Tensor | None = None
        if self.limit:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
            self._mapping = mmap.mmap(-1, self.limit, flags=flags)
            with contextlib.suppress(OSError):  # a kernel without huge pages
                self._mapping.madvise(mmap.MADV_HUGEPAGE)
            self._reserved = torch.frombuffer(self._mapping, dtype=torch.uint8)

    def take(self, nbytes: int, tag: str) -> Place | None:
        """See Region; starts to grow in the background when little is left."""
        place = super().take(nbytes, tag)
        self.grow_ahead()
        return place

    def grow_ahead(self) -> None:
        """See to it that a whole step is free, in the background."""
        after = min(self.capacity + STEP_BYTES, self.limit) + self.outside_bytes
        if self.capacity >= self.limit or after > self.limit:
            return
        if self._background is None or not self._ahead.acquire(blocking=False):
            return
        with self._lock:
            enough = any(extent.arena.largest_hole >= STEP_BYTES for extent in self._extents)
        if enough:
            self._ahead.release()
        else:
            self._background.submit(self._grow_once)

    def trim(self) -> None:
        """Give empty memory back as long as this and what others have are more than the limit together."""
        with self._growing:
            while self.capacity and self.capacity + self.outside_bytes > self.limit and self._shrink():
                pass

    def _shrink(self) -> bool:
        """Give an empty extent back, or the last step of the reserved one; False if neither is empty."""
        for extent in reversed(self._extents):
            capacity, is_own = extent.arena.capacity, extent.memory is self._reserved
            step = (capacity - 1) % STEP_BYTES + 1 if is_own else capacity
            with self._lock:
                shrunk = extent.arena.shrink(step)
                if not extent.arena.capacity:
                    self._extents.remove(extent)
            if shrunk and is_own:
                self._unlock(capacity - step, step)
            if shrunk:
                return True
        return False

    def _unlock(self, start: int, nbytes: int) -> None:
        """Give a step of the reserved range, which nobody can have any more, back to the system."""
        assert self._mapping is not None
        assert self._reserved is not None
        self._device.unpin(self._reserved[start : start + nbytes])
        first = start + -start % mmap.PAGESIZE
        whole = (start + nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if whole > 0:
            self._mapping.madvise(mmap.MADV_DONTNEED, first, whole)

    def pieces(self, target: torch.Tensor, source: Place) -> Iterator[Piece]:
        """Yield the copies that bring ``source`` to ``target``, none of which crosses two registrations."""
        if source.extent.memory is not self._reserved:
            yield target, source.memory
            return
        begin, end = source.slot.start, source.slot.start + source.memory.numel()
        while begin < end:
            stop = min(end, (begin // STEP_BYTES + 1) * STEP_BYTES)
            here = slice(begin - source.slot.start, stop - source.slot.start)
            yield target[here], source.memory[here]
            begin = stop

    def close(self) -> None:
        """Unlock everything; no copy is under way."""
        for extent in self._extents:
            if extent.memory is self._reserved:
                for start in range(0, extent.arena.capacity, STEP_BYTES):
                    self._device.unpin(extent.memory[start : min(start + STEP_BYTES, extent.arena.capacity)])
        self._extents.clear()

    def _grow_once(self) -> None:
        try:
            with self._growing:
                self._grow(0)
        finally:
            self._ahead.release()

    def _grow(self, nbytes: int) -> bool:
        if self.capacity + self.outside_bytes >= self.limit:
            return False
        if self._registering and self._reserved is not None:
            own = next((each for each in self._extents if each.memory is self._reserved), None)
            start = own.arena.capacity if own is not None else 0
            step = self._reserved[start : min(start + STEP_BYTES, self.limit)]
            if self._device.pin(step):
                with self._lock:
                    if own is None:
                        own = Extent(self._reserved, Arena())
                        self._extents.append(own)
                    own.arena.grow(step.numel())
                return True
            _log.warning("host memory cannot be registered with the device; taking torch's pinned memory instead")
            self._registering = False
        return self._grow_by_torch(nbytes)

    def _grow_by_torch(self, nbytes: int) -> bool:
        """One more extent of a power of two, which is what the allocator takes anyway."""
        nbytes = 1 << (max(nbytes, min(STEP_BYTES, self.limit)) - 1).bit_length()
        nbytes = min(nbytes, self.limit - self.capacity)
        try:
            memory = self._device.pinned(nbytes)
        except RuntimeError as error:
            _log.warning("no %d bytes of pinned host memory: %s", nbytes, str(error).partition("\n")[0])
            return False
        with self._lock:
            self._extents.append(Extent(memory, Arena(nbytes)))
        return True
