"""Cutting one range of bytes into slots: which bytes are whose. Pure: no memory, thread or clock behind it.

    |slot a|hole|slot b|leaving|hole ...........|        addresses 0 to ``capacity``, which may grow at its end

Best fit, every slot at a multiple of 256 bytes, holes that touch become one. A slot that is given back under events (a
copy out of it, a batch that reads it) is a hole only once all of them have passed.

There is no compaction: what lies here has a copy one tier below, so making a hole costs the going of its neighbours
(``cheapest_run``). Does not cover: who may go (the caller's ``cost``), what lies behind the addresses (``regions``).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from container.memory.align import ALIGN_BYTES, aligned


class Event(Protocol):
    """A point in a stream of work; torch.cuda.Event is one."""

    def query(self) -> bool:
        """Return whether everything before it is done."""

    def synchronize(self) -> None:
        """Return when everything before it is done."""


class Slot(NamedTuple):
    """``bytes`` (a multiple of 256) from ``start`` on, for ``tag``."""

    start: int
    bytes: int
    tag: str


class NoRun(Exception):
    """No hole of ``bytes`` in one piece; the sum of the holes may well be larger. Caught where others can be sunk."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(f"no {nbytes} bytes in one piece")
        self.bytes = nbytes


class Arena:
    """The book of one range. Not thread-safe."""

    def __init__(self, capacity: int = 0) -> None:
        self.capacity = 0
        self._holes: list[tuple[int, int]] = []  # (start, bytes) by start; no two touch
        self._slots: dict[int, Slot] = {}
        self._leaving: dict[int, tuple[Slot, tuple[Event, ...]]] = {}
        self.grow(capacity)

    def grow(self, nbytes: int) -> None:
        """Add ``nbytes`` (rounded down to 256) at the end."""
        nbytes -= nbytes % ALIGN_BYTES
        if nbytes:
            self.capacity += nbytes
            self._open(self.capacity - nbytes, nbytes)

    def shrink(self, nbytes: int) -> bool:
        """Cut ``nbytes`` (a multiple of 256) off the end; False if not all of that is a hole."""
        self._settle()
        start, size = self._holes[-1] if self._holes else (0, 0)
        if start + size < self.capacity or size < nbytes:
            return False
        self._holes[-1:] = [(start, size - nbytes)] if size > nbytes else []
        self.capacity -= nbytes
        return True

    def take(self, nbytes: int, tag: str = "") -> Slot | None:
        """Return a slot of at least ``nbytes``, cut from the smallest hole that fits; None if there is none."""
        nbytes = max(ALIGN_BYTES, aligned(nbytes))
        self._settle()
        fitting = [(size, start) for start, size in self._holes if size >= nbytes]
        if not fitting:
            return None
        size, start = min(fitting)
        self._holes.remove((start, size))
        if size > nbytes:
            bisect.insort(self._holes, (start + nbytes, size - nbytes))
        slot = self._slots[start] = Slot(start, nbytes, tag)
        return slot

    def give(self, slot: Slot, after: Iterable[Event] = ()) -> None:
        """Return ``slot``, to be used again once all of ``after`` have passed. Raises KeyError if it is not taken."""
        if self._slots.get(slot.start) != slot:
            raise KeyError(f"{slot} is not taken")
        del self._slots[slot.start]
        self._leaving[slot.start] = (slot, tuple(after))
        self._settle()

    def cheapest_run(self, nbytes: int, cost: Callable[[Slot], float | None]) -> list[Slot] | None:
        """Return the neighbours whose going makes a hole of ``nbytes`` and costs least; None if none can.

        cost: of one slot's going, not negative; None = it must stay. Slots that are leaving stay, too.
        """
        self._settle()
        holes: list[tuple[int, int, Slot | None]] = [(start, size, None) for start, size in self._holes]
        taken: list[tuple[int, int, Slot | None]] = [(each.start, each.bytes, each) for each in self._slots.values()]
        best: tuple[float, list[Slot]] | None = None
        run: list[tuple[int, Slot | None, float]] = []
        end = total = 0
        price = 0.0
        for start, size, slot in sorted(holes + taken, key=lambda piece: piece[0]):
            paid = 0.0 if slot is None else cost(slot)
            if start != end or paid is None:  # something that stays lies between, or is this
                run, total, price = [], 0, 0.0
            end = start + size
            if paid is None:
                continue
            run.append((size, slot, paid))
            total, price = total + size, price + paid
            while total - run[0][0] >= nbytes:
                total, price = total - run[0][0], price - run[0][2]
                del run[0]
            if total >= nbytes and (best is None or price < best[0]):
                best = (price, [each for _, each, _ in run if each is not None])
        return None if best is None else best[1]

    def price(self, cost: Callable[[Slot], float | None]) -> float | None:
        """Return what the going of all that lies here costs; None if something has to stay, or is leaving."""
        self._settle()
        costs = [cost(slot) for slot in self._slots.values()]
        paid = [each for each in costs if each is not None]
        return None if self._leaving or len(paid) < len(costs) else sum(paid)

    @property
    def slots(self) -> list[Slot]:
        """The slots that are taken."""
        return list(self._slots.values())

    @property
    def used_bytes(self) -> int:
        """Bytes of slots that are taken."""
        return sum(slot.bytes for slot in self._slots.values())

    @property
    def leaving_bytes(self) -> int:
        """Bytes given back whose events have not passed."""
        self._settle()
        return sum(slot.bytes for slot, _ in self._leaving.values())

    @property
    def largest_hole(self) -> int:
        """Bytes of the largest hole."""
        self._settle()
        return max((size for _, size in self._holes), default=0)

    def check(self) -> None:
        """Raise AssertionError unless slots, holes and what is leaving cover the range once, and no two holes touch."""
        pieces = sorted(
            [(start, size, "hole") for start, size in self._holes]
            + [(slot.start, slot.bytes, "slot") for slot in self._slots.values()]
            + [(slot.start, slot.bytes, "leaving") for slot, _ in self._leaving.values()]
        )
        end, before = 0, ""
        for start, size, kind in pieces:
            assert start == end, f"a gap or an overlap at {end}: {pieces}"
            assert start % ALIGN_BYTES == size % ALIGN_BYTES == 0, pieces
            assert size > 0, pieces
            assert not before == kind == "hole", f"two holes touch at {start}"
            end, before = start + size, kind
        assert end == self.capacity, (end, self.capacity)

    def _settle(self) -> None:
        for slot, after in list(self._leaving.values()):
            if all(event.query() for event in after):
                del self._leaving[slot.start]
                self._open(slot.start, slot.bytes)

    def _open(self, start: int, size: int) -> None:
        """Make a hole, one with those that it touches."""
        at = bisect.bisect(self._holes, (start, 0))
        if at < len(self._holes) and self._holes[at][0] == start + size:
            size += self._holes.pop(at)[1]
        if at and sum(self._holes[at - 1]) == start:
            start, before = self._holes.pop(at - 1)
            size += before
            at -= 1
        self._holes.insert(at, (start, size))
