"""Who has how many bytes on which tier. Pure arithmetic: no clock, thread, file or torch.

    add ──> (disk) ──reserve──> reserved ──commit──> used ──demote──> leaving ──release──> (disk) ──drop──> unknown
                                    └────────────────demote────────────┘

A model is a name and a list of segments; a segment that several models name is counted once on a tier, however many
use it, and its bytes leave when the last of them does. A promotion is ``reserve`` + ``commit``, because a copy lies
between; a demotion is ``demote`` + ``release``, because the bytes are still there until the last reader is done.

For each tier, always (``check``):  used + reserved + leaving + free == limit + over,  free * over == 0,  none negative.
``over`` is not nought only where measured bytes turned out larger than predicted, or the limit was lowered.

Does not cover: which model gives way (``memory/plan``), moving bytes (``memory/keeper``), bytes that are not of models.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Tier(enum.Enum):
    """Where bytes lie, the fastest first. DISK has no limit here: a registered model is always on it."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


class Segment(NamedTuple):
    """Bytes that rise and sink together. Models that name the same ``id`` share them."""

    id: str
    bytes: int


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
class Entry:
    """One model of the ledger, with what the planner goes by.

    Times are plain numbers of one clock, larger is later; the ledger reads none by itself.
    """

    name: str
    segments: tuple[str, ...]
    #: The manifest's wish never to sink.
    pinned: bool = False
    #: Requests in flight; a held model is never chosen.
    holds: int = 0
    #: When it last answered, and how often it has.
    used_at: float = 0.0
    uses: int = 0
    #: Since when its oldest queued request waits; None = nothing is queued.
    queued_since: float | None = None
    #: What rising costs, in any unit that is the same for all models (seconds).
    rise_cost: float = 1.0
    #: Value of the last model that was demoted when this one was last used (GreedyDual's ageing).
    floor: float = 0.0

    def value(self, nbytes: int) -> float:
        """Return what a byte of this model is worth: frequency x cost of rising / bytes, above ``floor``."""
        return self.floor + self.uses * self.rise_cost / max(1, nbytes)


@dataclass(slots=True)
class _Place:
    """A segment on a tier: its bytes there, whether they have arrived, and which models want them there."""

    bytes: int
    used: bool
    users: set[str]


@dataclass(slots=True)
class _Account:
    """One tier."""

    limit: int
    places: dict[str, _Place] = field(default_factory=dict)
    #: model -> bytes of it on their way out
    leaving: dict[str, int] = field(default_factory=dict)
    used_bytes: int = 0
    reserved_bytes: int = 0
    #: models whose promotion to here has begun / has ended
    reserved_by: set[str] = field(default_factory=set)
    used_by: set[str] = field(default_factory=set)
    floor: float = 0.0

    def free(self) -> int:
        return self.limit - self.used_bytes - self.reserved_bytes - sum(self.leaving.values())


class Ledger:
    """The book of one device. Not thread-safe: one owner, the engine's loop."""

    def __init__(self, limits: Mapping[Tier, int]) -> None:
        if Tier.DISK in limits:
            raise BadBooking("the disk tier has no limit in the ledger")
        self._accounts = {tier: _Account(limits[tier]) for tier in Tier if tier in limits}
        self._entries: dict[str, Entry] = {}
        self._bytes: dict[str, int] = {}  # segment -> bytes, predicted until measured
        self._owners: dict[str, set[str]] = {}  # segment -> registered models that name it

    # ------------------------------------------------------------------ verbs

    def add(self, name: str, segments: Iterable[Segment], *, pinned: bool = False, at: float = 0.0) -> Entry:
        """Register ``name``; its bytes are on disk only. Raises BadBooking for a known name or a negative size."""
        if name in self._entries:
            raise BadBooking(f"{name!r} is already in the ledger")
        parts = dict(segments)
        if any(nbytes < 0 for nbytes in parts.values()):
            raise BadBooking(f"{name!r} has a segment of negative size: {parts}")
        for segment, nbytes in parts.items():
            self._bytes.setdefault(segment, nbytes)
            self._owners.setdefault(segment, set()).add(name)
        entry = self._entries[name] = Entry(name, tuple(parts), pinned=pinned, used_at=at)
        return entry

    def reserve(self, name: str, tier: Tier) -> int:
        """Reserve room for every segment of ``name`` that is not on ``tier`` yet, all or none; return those bytes.

        Raises BadBooking if they do not fit: ask ``plan.make_room`` first, and carry its steps out.
        """
        account, entry = self._accounts[tier], self.entry(name)
        if name in account.reserved_by or name in account.used_by:
            raise BadBooking(f"{name!r} is already on the {tier.value} tier, or on its way")
        if name in account.leaving:
            raise BadBooking(f"{name!r} is still leaving the {tier.value} tier")
        missing = {s: self._bytes[s] for s in entry.segments if s not in account.places}
        need = sum(missing.values())
        if need > max(0, account.free()):
            raise BadBooking(f"{name!r} needs {need} bytes on the {tier.value} tier and {account.free()} are free")
        for segment, nbytes in missing.items():
            account.places[segment] = _Place(nbytes, False, set())
        account.reserved_bytes += need
        for segment in entry.segments:
            account.places[segment].users.add(name)
        account.reserved_by.add(name)
        return need

    def commit(self, name: str, tier: Tier, measured: Mapping[str, int] | int | None = None) -> None:
        """The bytes have arrived: reserved becomes used.

        measured: bytes by segment, or one number for a model of one segment; None = as predicted. It replaces the
        prediction from here on. A segment that another user has already brought keeps its bytes.
        """
        account, entry = self._accounts[tier], self.entry(name)
        if name not in account.reserved_by:
            raise BadBooking(f"{name!r} has nothing reserved on the {tier.value} tier")
        sizes = self._sizes(entry, measured)
        for segment in entry.segments:
            place = account.places[segment]
            if place.used:
                continue
            account.reserved_bytes -= place.bytes
            place.bytes = self._bytes[segment] = sizes.get(segment, place.bytes)
            place.used = True
            account.used_bytes += place.bytes
        account.reserved_by.discard(name)
        account.used_by.add(name)

    def demote(self, name: str, tier: Tier) -> int:
        """``name`` gives up its place on ``tier``, or its reservation; return the bytes that are leaving with it.

        Segments that others use there stay. The bytes count until ``release``. Raises BadBooking for a held model.
        """
        account, entry = self._accounts[tier], self.entry(name)
        if name not in account.reserved_by and name not in account.used_by:
            raise BadBooking(f"{name!r} is not on the {tier.value} tier")
        if entry.holds:
            raise BadBooking(f"{name!r} has {entry.holds} requests in flight and cannot leave the {tier.value} tier")
        if name in account.used_by:
            account.floor = max(account.floor, entry.value(self.bytes(name)))
        leaving = 0
        for segment in entry.segments:
            place = account.places[segment]
            place.users.discard(name)
            if place.users:
                continue
            leaving += place.bytes
            if place.used:
                account.used_bytes -= place.bytes
            else:
                account.reserved_bytes -= place.bytes
            del account.places[segment]
        account.reserved_by.discard(name)
        account.used_by.discard(name)
        account.leaving[name] = account.leaving.get(name, 0) + leaving
        return leaving

    def release(self, name: str, tier: Tier) -> int:
        """The bytes that ``demote`` set leaving are gone; return how many. Raises BadBooking if none were leaving."""
        account = self._accounts[tier]
        if name not in account.leaving:
            raise BadBooking(f"{name!r} has nothing leaving the {tier.value} tier")
        return account.leaving.pop(name)

    def drop(self, name: str) -> None:
        """Forget ``name``. Raises BadBooking while any byte of it is on a bounded tier, reserved or leaving."""
        entry = self.entry(name)
        for tier, account in self._accounts.items():
            if name in account.reserved_by or name in account.used_by or name in account.leaving:
                raise BadBooking(f"{name!r} still has bytes on the {tier.value} tier")
        for segment in entry.segments:
            self._owners[segment].discard(name)
            if not self._owners[segment]:
                del self._owners[segment], self._bytes[segment]
        del self._entries[name]

    def pin(self, name: str) -> None:
        """Never let the planner choose ``name``."""
        self.entry(name).pinned = True

    def unpin(self, name: str) -> None:
        """Let the planner choose ``name`` again."""
        self.entry(name).pinned = False

    def hold(self, name: str) -> None:
        """A request is in flight on ``name``: it may not be demoted until ``unhold``."""
        self.entry(name).holds += 1

    def unhold(self, name: str) -> int:
        """One request less in flight; return how many are left. Raises BadBooking below nought."""
        entry = self.entry(name)
        if entry.holds == 0:
            raise BadBooking(f"{name!r} is not held")
        entry.holds -= 1
        return entry.holds

    def touch(self, name: str, at: float) -> None:
        """``name`` answered at ``at``: its age and frequency for the planner."""
        entry = self.entry(name)
        entry.used_at = max(entry.used_at, at)
        entry.uses += 1
        entry.floor = max((account.floor for account in self._accounts.values()), default=0.0)

    def queue(self, name: str, since: float | None) -> None:
        """The oldest queued request of ``name`` waits since ``since``; None = its queue is empty."""
        self.entry(name).queued_since = since

    def set_limit(self, tier: Tier, limit: int) -> None:
        """Change the limit of ``tier``; what is there stays, and shows as ``over`` if it is too much."""
        self._accounts[tier].limit = limit

    # ---------------------------------------------------------------- figures

    def entry(self, name: str) -> Entry:
        """Return the entry of ``name``. Raises BadBooking for an unknown name."""
        entry = self._entries.get(name)
        if entry is None:
            raise BadBooking(f"{name!r} is not in the ledger")
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The bounded tiers, the fastest first."""
        return tuple(self._accounts)

    def figures(self, tier: Tier) -> Figures:
        """Return the sums of ``tier``."""
        account = self._accounts[tier]
        free = account.free()
        leaving = sum(account.leaving.values())
        return Figures(account.limit, account.used_bytes, account.reserved_bytes, leaving, max(0, free), max(0, -free))

    def tier(self, name: str) -> Tier:
        """Return the fastest tier on which ``name`` lies whole; DISK if on none."""
        self.entry(name)
        return next((tier for tier, account in self._accounts.items() if name in account.used_by), Tier.DISK)

    def used_by(self, tier: Tier) -> frozenset[str]:
        """Return the models that lie whole on ``tier``."""
        return frozenset(self._accounts[tier].used_by)

    def reserved_by(self, tier: Tier) -> frozenset[str]:
        """Return the models on their way to ``tier``."""
        return frozenset(self._accounts[tier].reserved_by)

    def leaving(self, tier: Tier) -> frozenset[str]:
        """Return the models with bytes on their way out of ``tier``."""
        return frozenset(self._accounts[tier].leaving)

    def bytes(self, name: str) -> int:
        """Return the bytes of ``name``, shared ones included: measured if it has been up, else predicted."""
        return sum(self._bytes[segment] for segment in self.entry(name).segments)

    def shared_bytes(self, name: str) -> int:
        """Return the part of ``bytes`` that other registered models use too."""
        return sum(self._bytes[s] for s in self.entry(name).segments if len(self._owners[s]) > 1)

    def unique_bytes(self, name: str) -> int:
        """Return the part of ``bytes`` that is of this model alone."""
        return self.bytes(name) - self.shared_bytes(name)

    def segments(self, name: str) -> dict[str, int]:
        """Return segment -> bytes of ``name``."""
        return {segment: self._bytes[segment] for segment in self.entry(name).segments}

    def users(self, segment: str, tier: Tier) -> frozenset[str]:
        """Return the models that keep ``segment`` on ``tier``, those on their way included."""
        place = self._accounts[tier].places.get(segment)
        return frozenset(place.users) if place else frozenset()

    def placed_bytes(self, segment: str, tier: Tier) -> int:
        """Return the bytes that ``segment`` takes on ``tier``, used or reserved; 0 if it is not there."""
        place = self._accounts[tier].places.get(segment)
        return place.bytes if place else 0

    def missing_bytes(self, name: str, tier: Tier) -> int:
        """Return what ``reserve`` would take."""
        return sum(n for segment, n in self.segments(name).items() if segment not in self._accounts[tier].places)

    def check(self) -> None:
        """Raise AssertionError unless every law of the book holds; O(everything), for tests and an idle engine."""
        for tier, account in self._accounts.items():
            sums = self.figures(tier)
            assert min(sums) >= 0, (tier, sums)
            assert sums.used + sums.reserved + sums.leaving + sums.free == sums.limit + sums.over, (tier, sums)
            assert sums.free * sums.over == 0, (tier, sums)
            assert sums.used == sum(p.bytes for p in account.places.values() if p.used), tier
            assert sums.reserved == sum(p.bytes for p in account.places.values() if not p.used), tier
            assert not account.reserved_by & account.used_by, tier
            users: dict[str, set[str]] = {}
            for name in account.reserved_by | account.used_by:
                for segment in self._entries[name].segments:
                    users.setdefault(segment, set()).add(name)
            assert users == {segment: place.users for segment, place in account.places.items()}, tier
            for name in account.used_by:
                assert all(account.places[s].used for s in self._entries[name].segments), (tier, name)
            for segment, place in account.places.items():
                assert place.used or place.users <= account.reserved_by, (tier, segment)
            assert account.leaving.keys() <= self._entries.keys(), tier
        owners: dict[str, set[str]] = {}
        for entry in self._entries.values():
            assert entry.holds >= 0, entry
            for segment in entry.segments:
                owners.setdefault(segment, set()).add(entry.name)
        assert owners == self._owners
        assert owners.keys() == self._bytes.keys()

    @staticmethod
    def _sizes(entry: Entry, measured: Mapping[str, int] | int | None) -> Mapping[str, int]:
        if measured is None:
            return {}
        if isinstance(measured, int):
            if len(entry.segments) != 1:
                raise BadBooking(f"{entry.name!r} has {len(entry.segments)} segments; give measured bytes by segment")
            measured = {entry.segments[0]: measured}
        if not measured.keys() <= set(entry.segments) or min(measured.values(), default=0) < 0:
            raise BadBooking(f"{entry.name!r} does not have these segments, or a size is negative: {dict(measured)}")
        return measured
