"""One tier of the ledger: which segments lie on it, for whom, and the sums. Pure.

    nothing ──reserve──> reserved ──commit──> used ──demote──> leaving ──release──> nothing

A segment's place is counted once however many models use it. Always:
used + reserved + leaving + free == limit + over,  free * over == 0,  none negative.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Tier(enum.Enum):
    """Where bytes lie, the fastest first. DISK has no limit in the ledger: a registered model is always on it."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


class Figures(NamedTuple):
    """One tier in bytes: used + reserved + leaving + free == limit + over."""

    limit: int
    used: int
    reserved: int
    leaving: int
    free: int
    over: int


class BadBooking(RuntimeError):
    """A verb out of order, or a reservation that does not fit: a mistake of ours, never of a caller."""


@dataclass(slots=True)
class _Place:
    """A segment on the tier: its bytes here, whether they have arrived, and which models want them here."""

    bytes: int
    used: bool
    users: set[str]


class Account:
    """The book of one tier. The ledger is its only caller for verbs; the planner reads it."""

    def __init__(self, tier: Tier, limit: int) -> None:
        self.tier = tier
        self.limit = limit
        #: What the machine itself has for models, where that is less; None = not known.
        self.cap: int | None = None
        #: Models that lie here whole; models on their way here; models with bytes on their way out.
        self.used_by: set[str] = set()
        self.reserved_by: set[str] = set()
        self.leaving: dict[str, int] = {}
        #: Models that came, or became others, since somebody (``order.Coldest``) emptied this.
        self.arrived: set[str] = set()
        self._places: dict[str, _Place] = {}
        self._used_bytes = 0
        self._reserved_bytes = 0

    def figures(self) -> Figures:
        """Return the sums; the limit is the machine's own where that is less."""
        leaving = sum(self.leaving.values())
        limit = self.limit if self.cap is None else min(self.limit, self.cap)
        free = limit - self._used_bytes - self._reserved_bytes - leaving
        return Figures(limit, self._used_bytes, self._reserved_bytes, leaving, max(0, free), max(0, -free))

    def has(self, name: str) -> bool:
        """Is any byte of ``name`` booked here?"""
        return name in self.used_by or name in self.reserved_by or name in self.leaving

    def users(self, segment: str) -> int:
        """Return how many models want ``segment`` here, those on their way included."""
        place = self._places.get(segment)
        return len(place.users) if place else 0

    def placed_bytes(self, segment: str) -> int:
        """Return the bytes that ``segment`` takes here, used or reserved; 0 if it is not here."""
        place = self._places.get(segment)
        return place.bytes if place else 0

    def share(self, segments: Iterable[str]) -> int:
        """Return the bytes of ``segments`` here, those that several models use divided among them."""
        places = [self._places[segment] for segment in segments if segment in self._places]
        return sum(place.bytes // max(1, len(place.users)) for place in places)

    def shared(self) -> tuple[int, int]:
        """Return the bytes that several models use here, and what they would take beyond that without sharing."""
        several = [place for place in self._places.values() if len(place.users) > 1]
        return sum(place.bytes for place in several), sum(place.bytes * (len(place.users) - 1) for place in several)

    def missing(self, segments: Mapping[str, int]) -> dict[str, int]:
        """Return those of ``segments`` (id -> bytes) that are not here."""
        return {segment: nbytes for segment, nbytes in segments.items() if segment not in self._places}

    def reserve(self, name: str, segments: Mapping[str, int]) -> int:
        """Reserve what is missing of ``segments``, all or none; return those bytes. Raises BadBooking."""
        if self.has(name):
            raise BadBooking(f"{name!r} is on the {self.tier.value} tier already, on its way, or still leaving")
        missing = self.missing(segments)
        need = sum(missing.values())
        free = self.figures().free
        if need > free:
            raise BadBooking(f"{name!r} needs {need} bytes on the {self.tier.value} tier and {free} are free")
        for segment, nbytes in missing.items():
            self._places[segment] = _Place(nbytes, False, set())
        for segment in segments:
            self._places[segment].users.add(name)
        self._reserved_bytes += need
        self.reserved_by.add(name)
        return need

    def commit(self, name: str, segments: Mapping[str, int]) -> dict[str, int]:
        """``segments`` have arrived with these bytes; return those that ``name`` was the first to bring."""
        if name not in self.reserved_by:
            raise BadBooking(f"{name!r} has nothing reserved on the {self.tier.value} tier")
        brought = {segment: nbytes for segment, nbytes in segments.items() if not self._places[segment].used}
        for segment, nbytes in brought.items():
            place = self._places[segment]
            self._reserved_bytes -= place.bytes
            self._used_bytes += nbytes
            place.bytes, place.used = nbytes, True
        self.reserved_by.discard(name)
        self.used_by.add(name)
        self.arrived.add(name)
        return brought

    def demote(self, name: str, segments: Mapping[str, int]) -> int:
        """``name`` gives up its place or its reservation; return the bytes that nobody else uses: they are leaving."""
        if name not in self.used_by and name not in self.reserved_by:
            raise BadBooking(f"{name!r} is not on the {self.tier.value} tier")
        leaving = 0
        for segment in segments:
            place = self._places[segment]
            place.users.discard(name)
            if place.users:
                continue
            del self._places[segment]
            leaving += place.bytes
            self._count(place, -1)
        self.used_by.discard(name)
        self.reserved_by.discard(name)
        self.arrived.discard(name)
        self.leaving[name] = leaving
        return leaving

    def release(self, name: str) -> int:
        """The leaving bytes of ``name`` are gone; return how many. Raises BadBooking if none were leaving."""
        if name not in self.leaving:
            raise BadBooking(f"{name!r} has nothing leaving the {self.tier.value} tier")
        return self.leaving.pop(name)

    def recut(self, name: str, old: Iterable[str], new: Mapping[str, int]) -> None:
        """``name`` consists of ``new`` instead of ``old``: a place nobody uses any more goes, a new one is there.

        For a model that is on its way, a new place is reserved. May leave the tier over its limit.
        """
        if name not in self.used_by and name not in self.reserved_by:
            return
        used = name in self.used_by
        if used:
            self.arrived.add(name)
        for segment in old:
            place = self._places[segment]
            if segment not in new:
                place.users.discard(name)
                if not place.users:
                    self._count(place, -1)
                    del self._places[segment]
        for segment, nbytes in new.items():
            if segment not in self._places:
                self._places[segment] = _Place(nbytes, used, set())
                self._count(self._places[segment], +1)
            place = self._places[segment]
            place.users.add(name)
            self._count(place, -1)
            if place.users == {name}:
                place.bytes = nbytes
            place.used = place.used or used  # if somebody was bringing it: it is there now
            self._count(place, +1)

    def check(self, segments_of: Mapping[str, tuple[str, ...]]) -> None:
        """Raise AssertionError unless the laws hold; ``segments_of``: every registered model's segments."""
        sums = self.figures()
        assert min(sums) >= 0, sums
        assert sums.used + sums.reserved + sums.leaving + sums.free == sums.limit + sums.over, sums
        assert sums.free * sums.over == 0, sums
        assert sums.used == sum(place.bytes for place in self._places.values() if place.used), sums
        assert sums.reserved == sum(place.bytes for place in self._places.values() if not place.used), sums
        names = [*self.used_by, *self.reserved_by, *self.leaving]
        assert len(names) == len(set(names)), "a model is in one state on a tier"
        assert set(names) <= segments_of.keys(), "bytes of a model that is not registered"
        users: dict[str, set[str]] = {}
        for name in self.used_by | self.reserved_by:
            for segment in segments_of[name]:
                users.setdefault(segment, set()).add(name)
        assert users == {segment: place.users for segment, place in self._places.items()}, "references are wrong"
        for name in self.used_by:
            assert all(self._places[segment].used for segment in segments_of[name]), f"{name} is not whole"

    def _count(self, place: _Place, sign: int) -> None:
        if place.used:
            self._used_bytes += sign * place.bytes
        else:
            self._reserved_bytes += sign * place.bytes
