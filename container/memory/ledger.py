"""Who has how many bytes on which tier. Pure arithmetic: no clock, thread, file or torch.

    add ──> (disk) ──reserve──> reserved ──commit──> used ──demote──> leaving ──release──> (disk) ──drop──> unknown
                                    └───────────────demote───────────────┘

A model is a name and a list of segments; a segment that several models name is counted once on a tier, however many
use it, and its bytes leave when the last of them does. A promotion is ``reserve`` + ``commit``, because a copy lies
between; a demotion is ``demote`` + ``release``, because the bytes are still there until the last reader is done.

The laws are those of ``memory/account`` for each tier; ``check`` asserts them. ``over`` is not nought only where
measured bytes turned out larger than predicted, or the limit was lowered.

Does not cover: which model gives way (``memory/plan``), moving bytes (``memory/keeper``), bytes that are not of models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import NamedTuple

from container.memory.account import Account, BadBooking, Figures, Tier

__all__ = ["BadBooking", "Entry", "Figures", "Ledger", "Segment", "Tier"]


#: After this many requests for each registered model a use counts for half. ``bench/policy.py`` shows what others do.
HALF_LIFE = 3.0
LEAST_MODELS = 16


class Segment(NamedTuple):
    """Bytes that rise and sink together. Models that name the same ``id`` share them."""

    id: str
    bytes: int


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
    #: What rising costs, in any unit that is the same for all models (seconds), and how often that was measured.
    rise_cost: float = 1.0
    rises: int = 0
    #: Value of the last model that was demoted when this one was last used (GreedyDual's ageing).
    floor: float = 0.0
    #: The model whose work these bytes are lent to (``memory/loans``); "" = it is a model itself.
    owner: str = ""
    #: Recent uses, as the logarithm to base 2 of what they would have been at the beginning (LRFU's ageing).
    heat: float = 0.0

    def value(self, nbytes: int) -> float:
        """Return what a byte of this model is worth: frequency x cost of rising / bytes, above ``floor``."""
        return self.floor + self.uses * self.rise_cost / max(1, nbytes)


class Ledger:
    """The book of one device. Not thread-safe: one owner, the engine's loop.

    Every method raises BadBooking for a name that is not registered.
    """

    def __init__(self, limits: Mapping[Tier, int], *, half_life: float = HALF_LIFE) -> None:
        if Tier.DISK in limits:
            raise BadBooking("the disk tier has no limit in the ledger")
        self._accounts = {tier: Account(tier, limits[tier]) for tier in Tier if tier in limits}
        self._entries: dict[str, Entry] = {}
        self._bytes: dict[str, int] = {}  # segment -> bytes, predicted until measured
        self._owners: dict[str, set[str]] = {}  # segment -> registered models that name it
        self._floor = 0.0
        self._half_life = half_life
        self._age = 0.0  # in half-lives

    # ------------------------------------------------------------------ verbs

    def add(
        self, name: str, segments: Iterable[Segment], *, pinned: bool = False, at: float = 0.0, owner: str = ""
    ) -> Entry:
        """Register ``name``; its bytes are on disk only. Raises BadBooking for a known name or a negative size."""
        if name in self._entries:
            raise BadBooking(f"{name!r} is already in the ledger")
        sizes = dict(segments)
        if any(nbytes < 0 for nbytes in sizes.values()):
            raise BadBooking(f"{name!r} has a segment of negative size: {sizes}")
        self._own(name, sizes)
        entry = self._entries[name] = Entry(name, tuple(sizes), pinned=pinned, used_at=at, heat=self._age, owner=owner)
        return entry

    def reserve(self, name: str, tier: Tier) -> int:
        """Reserve room for every segment of ``name`` that is not on ``tier`` yet, all or none; return those bytes.

        Raises BadBooking if they do not fit: ask ``plan.make_room`` first, and carry its steps out.
        """
        return self._accounts[tier].reserve(name, self.segments(name))

    def commit(self, name: str, tier: Tier, measured: Mapping[str, int] | int | None = None) -> None:
        """The bytes have arrived: reserved becomes used.

        measured: bytes by segment, or one number for a model of one segment; None = as predicted. It replaces the
        prediction from here on. A segment that another model has brought already keeps its bytes.
        """
        sizes = self.segments(name)
        if isinstance(measured, int):
            if len(sizes) != 1:
                raise BadBooking(f"{name!r} has {len(sizes)} segments; give measured bytes by segment")
            measured = dict.fromkeys(sizes, measured)
        measured = measured or {}
        if not measured.keys() <= sizes.keys() or min(measured.values(), default=0) < 0:
            raise BadBooking(f"{name!r} does not have these segments, or a size is negative: {dict(measured)}")
        self._bytes |= self._accounts[tier].commit(name, sizes | dict(measured))

    def demote(self, name: str, tier: Tier) -> int:
        """``name`` gives up its place on ``tier``, or its reservation; return the bytes that are leaving with it.

        Segments that others use there stay. The bytes count until ``release``. Raises BadBooking for a held model.
        """
        entry = self.entry(name)
        if entry.holds:
            raise BadBooking(f"{name!r} has {entry.holds} requests in flight and cannot leave the {tier.value} tier")
        if name in self._accounts[tier].used_by:
            self._floor = max(self._floor, entry.value(self.bytes(name)))
        return self._accounts[tier].demote(name, self.segments(name))

    def release(self, name: str, tier: Tier) -> int:
        """The bytes that ``demote`` set leaving are gone; return how many. Raises BadBooking if none were leaving."""
        return self._accounts[tier].release(name)

    def drop(self, name: str) -> None:
        """Forget ``name``. Raises BadBooking while any byte of it is booked on a tier, leaving ones included."""
        entry = self.entry(name)
        for tier, account in self._accounts.items():
            if account.has(name):
                raise BadBooking(f"{name!r} still has bytes on the {tier.value} tier")
        self._disown(name, entry.segments)
        del self._entries[name]

    def recut(self, name: str, segments: Iterable[Segment]) -> None:
        """``name`` consists of other segments from here on: its weights were found to be shared with other models.

        On a tier where it lies, places that nobody uses any more are gone at once, and new ones are used at once. A
        segment that others have keeps its bytes.
        """
        entry, sizes = self.entry(name), dict(segments)
        if any(nbytes < 0 for nbytes in sizes.values()):
            raise BadBooking(f"{name!r} has a segment of negative size: {sizes}")
        old, entry.segments = entry.segments, tuple(sizes)
        self._own(name, sizes)
        for account in self._accounts.values():
            account.recut(name, old, self.segments(name))
        self._disown(name, [segment for segment in old if segment not in sizes])

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
        entry.floor = self._floor
        self._age += 1.0 / (self._half_life * max(LEAST_MODELS, len(self._entries)))
        entry.heat = self._age + math.log2(1.0 + 2.0 ** (entry.heat - self._age))

    def rose(self, name: str, seconds: float) -> None:
        """``name`` came up in ``seconds``: the cost of rising for the planner, smoothed over its rises."""
        entry = self.entry(name)
        entry.rise_cost = seconds if entry.rises == 0 else (entry.rise_cost + seconds) / 2
        entry.rises += 1

    def queue(self, name: str, since: float | None) -> None:
        """The oldest queued request of ``name`` waits since ``since``; None = its queue is empty."""
        self.entry(name).queued_since = since

    def set_limit(self, tier: Tier, limit: int) -> None:
        """Change the limit of ``tier``; what is there stays, and shows as ``over`` if it is too much."""
        self._accounts[tier].limit = limit

    def set_cap(self, tier: Tier, cap: int | None) -> None:
        """The machine has ``cap`` bytes for models on ``tier``, whatever the limit says; None = more than enough."""
        self._accounts[tier].cap = cap

    def _own(self, name: str, sizes: Mapping[str, int]) -> None:
        for segment, nbytes in sizes.items():
            owners = self._owners.setdefault(segment, set())
            owners.add(name)
            if owners == {name}:
                self._bytes[segment] = nbytes

    def _disown(self, name: str, segments: Iterable[str]) -> None:
        for segment in segments:
            self._owners[segment].discard(name)
            if not self._owners[segment]:
                del self._owners[segment], self._bytes[segment]

    # ---------------------------------------------------------------- figures

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, name: str) -> Entry:
        """Return the entry of ``name``."""
        entry = self._entries.get(name)
        if entry is None:
            raise BadBooking(f"{name!r} is not in the ledger")
        return entry

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The bounded tiers, the fastest first."""
        return tuple(self._accounts)

    def account(self, tier: Tier) -> Account:
        """Return the book of ``tier``, to read."""
        return self._accounts[tier]

    def used_by(self, tier: Tier) -> Set[str]:
        """Return the models that lie whole on ``tier``; a live view."""
        return self._accounts[tier].used_by

    def reserved_by(self, tier: Tier) -> Set[str]:
        """Return the models on their way to ``tier``; a live view."""
        return self._accounts[tier].reserved_by

    def leaving(self, tier: Tier) -> Set[str]:
        """Return the models with bytes on their way out of ``tier``; a live view."""
        return self._accounts[tier].leaving.keys()

    def figures(self, tier: Tier) -> Figures:
        """Return the sums of ``tier``."""
        return self._accounts[tier].figures()

    def tier(self, name: str) -> Tier:
        """Return the fastest tier on which ``name`` lies whole; DISK if on none."""
        self.entry(name)
        return next((tier for tier, account in self._accounts.items() if name in account.used_by), Tier.DISK)

    def segments(self, name: str) -> dict[str, int]:
        """Return segment -> bytes of ``name``: measured if it has been up, else predicted."""
        return {segment: self._bytes[segment] for segment in self.entry(name).segments}

    def bytes(self, name: str) -> int:
        """Return the bytes of ``name``, shared ones included."""
        return sum(self.segments(name).values())

    def beside(self, name: str, tier: Tier) -> int:
        """Return the bytes that there are on ``tier`` beside ``name``, were it alone; from any thread, 0 if unknown."""
        entry = self._entries.get(name)
        own = sum(self._bytes.get(segment, 0) for segment in entry.segments) if entry is not None else 0
        return max(0, self._accounts[tier].limit - own) if entry is not None else 0

    def shared_bytes(self, name: str) -> int:
        """Return the part of ``bytes`` that other registered models use too; the rest is unique to ``name``."""
        return sum(nbytes for segment, nbytes in self.segments(name).items() if len(self._owners[segment]) > 1)

    def check(self) -> None:
        """Raise AssertionError unless every law of the book holds; O(everything), for tests and an idle engine."""
        segments_of = {entry.name: entry.segments for entry in self._entries.values()}
        for account in self._accounts.values():
            account.check(segments_of)
        owners: dict[str, set[str]] = {}
        for entry in self._entries.values():
            assert entry.holds >= 0, entry
            for segment in entry.segments:
                owners.setdefault(segment, set()).add(entry.name)
        assert owners == self._owners, "owners are wrong"
        assert owners.keys() == self._bytes.keys(), "sizes of segments that no model has"
