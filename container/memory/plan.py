"""Which models give way so that another can rise: a pure function of the ledger.

    make_room(ledger, DEVICE, "cats") -> [Demote("dogs", DEVICE, DISK), Reserve("cats", DEVICE, 98 MiB)]

Two laws hold for every policy: a model that is held, pinned or on its way is never chosen; and no chosen model can be
left out (each one's bytes are needed). Idle models go before models with queued work, and those only for an asker that
has waited longer than they have. Among the idle ones an ordering function decides (``memory/order``).

When nothing can be done at once, three refusals are told apart: ``LargerThanTier`` (never, whatever sinks), ``Wait``
(once work in flight ends), ``NoRoom`` (held by pins, or by a policy that forbids sinking).

Does not cover: the order in which askers are served, time, and whether bytes already leaving really go (the keeper's);
memory that models use beyond their weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from container.errors import LargerThanTier, NoRoom
from container.memory.account import Account, Tier
from container.memory.ledger import Ledger
from container.memory.order import Coldest, Order, lru, ranked


class Demote(NamedTuple):
    """Give up the place of ``name`` on ``source``; ``target`` is where it still lies then (its bytes are there)."""

    name: str
    source: Tier
    target: Tier


class Reserve(NamedTuple):
    """Reserve ``bytes`` (what is missing) for ``name`` on ``tier``; the bytes of the Demotes must be gone by then."""

    name: str
    tier: Tier
    bytes: int


Step = Demote | Reserve
Policy = Literal["sink", "platform"]


class Marks(NamedTuple):
    """Parts of a tier's limit: once more than ``high`` is taken, idle models sink until no more than ``low`` is."""

    high: float
    low: float


class Wait(Exception):
    """Nothing to do now; it would fit once what is named in ``for_`` is over. Plan again when the ledger changes."""

    def __init__(self, needed_bytes: int, for_: Iterable[str]) -> None:
        self.needed_bytes = needed_bytes
        self.for_ = frozenset(for_)
        super().__init__(f"{needed_bytes} bytes would be free once these are idle or gone: {sorted(self.for_)}")


def make_room(
    ledger: Ledger, tier: Tier, want: str | int, *, order: Order | Coldest = lru, policy: Policy = "sink"
) -> list[Step]:
    """Return the steps after which ``want`` has its room on ``tier``; nothing is changed.

    want: the name of a registered model (the last step is its Reserve; [] if it is there already), or a number of
    bytes that shall be free (only Demotes). What is lent to a model's work never takes that model's place. order: who
    goes first, or the models of ``tier`` kept in that order.
    Raises LargerThanTier, NoRoom (messages for the caller) or Wait.
    """
    name = want if isinstance(want, str) else ""
    account = ledger.account(tier)
    if name and (name in account.used_by or name in account.reserved_by):
        return []
    segments = ledger.segments(name) if name else {}
    total = sum(segments.values()) if name else int(want)
    missing = sum(account.missing(segments).values()) if name else total
    sums = account.figures()
    owner = ledger.entry(name).owner if name else ""
    if owner and total > ledger.beside(owner, tier):
        raise LargerThanTier(_larger_beside(owner, total, ledger, tier))
    if total > account.limit:
        raise LargerThanTier(_larger(name, total, account.limit, tier))
    if name in account.leaving:
        raise Wait(missing, [name])
    short = missing - sums.free + sums.over
    if short <= 0 or (name and missing == 0):  # all of it is there already, brought by those who share it
        return [Reserve(name, tier, missing)] if name else []
    if short <= sums.leaving:  # enough is on its way out: evicting more would empty the tier twice
        raise Wait(missing, account.leaving)
    if policy == "platform":
        lent = [one for one in account.used_by if ledger.entry(one).owner] if owner else []
        if lent and short <= sums.leaving + sum(map(ledger.bytes, lent)):
            raise Wait(missing, lent)
        raise NoRoom(_no_room(name, missing, sums.free, tier, "BERTH_EVICTION=platform forbids sinking others"))
    short -= sums.leaving
    victims = _choose(ledger, account, _idle(ledger, tier, order, owner), short, segments)
    if victims is None:  # all of the idle ones together are not enough, so that looking at everybody is no loss
        idle = list(_idle(ledger, tier, order, owner))
        queued, busy = _others(ledger, tier, name, owner)
        victims = _choose(ledger, account, idle + queued, short, segments)
        if victims is None and _choose(ledger, account, idle + queued + busy, short, segments) is not None:
            raise Wait(missing, {*busy, *account.leaving})
    if victims is not None:
        demotes: list[Step] = [Demote(victim, tier, _below(ledger, victim, tier)) for victim in victims]
        return [*demotes, Reserve(name, tier, _missing_after(ledger, account, victims, segments))] if name else demotes
    why = short_machine(account) or "the rest is held by pinned models"
    raise NoRoom(_no_room(name, missing, sums.free, tier, why))


def short_machine(account: Account) -> str:
    """Return how much less the machine itself has for models than the limit says; "" if it has no less."""
    limit = account.figures().limit
    return f"others on this machine leave no more than {_size(limit)} to all models" if limit < account.limit else ""


def check_size(ledger: Ledger, tier: Tier, name: str) -> None:
    """Raise LargerThanTier if ``name`` can never lie on ``tier``, whatever sinks."""
    total, limit = ledger.bytes(name), ledger.account(tier).limit
    if total > limit:
        raise LargerThanTier(_larger(name, total, limit, tier))


def fits(ledger: Ledger, tier: Tier, name: str) -> bool:
    """Whether ``tier`` is within its limit once everything but ``name``, which is there, and what is pinned sinks."""
    account = ledger.account(tier)
    over = account.figures().over
    others = [one for one in account.used_by | account.reserved_by if one != name and not ledger.entry(one).pinned]
    return over == 0 or _choose(ledger, account, others, over, {}) is not None


def idle_models(ledger: Ledger, tier: Tier, *, order: Order | Coldest = lru) -> list[Demote]:
    """Return a Demote for every model that may sink now: what a real out-of-memory error is answered with."""
    return [Demote(name, tier, _below(ledger, name, tier)) for name in _idle(ledger, tier, order)]


def ease(ledger: Ledger, tier: Tier, marks: Marks, *, order: Order | Coldest = lru, spared: str = "") -> list[Demote]:
    """Return who sinks beforehand, so that the next rise finds its room; [] while ``tier`` is under its high mark.

    spared: the model that has just come. What is in use may keep the tier over its low mark.
    """
    sums = ledger.figures(tier)
    taken = sums.used + sums.reserved + sums.leaving
    if taken <= sums.limit * marks.high:
        return []
    short = math.ceil(taken - sums.leaving - sums.limit * marks.low)
    if short <= 0:
        return []
    idle = list(_idle(ledger, tier, order, spared))
    chosen = _choose(ledger, ledger.account(tier), idle, short, {})
    return [Demote(name, tier, _below(ledger, name, tier)) for name in (idle if chosen is None else chosen)]


def _idle(ledger: Ledger, tier: Tier, order: Order | Coldest, spared: str = "") -> Iterator[str]:
    """Yield the models that nobody holds, pins or waits for, in the order in which they would go."""
    for name in order if isinstance(order, Coldest) else ranked(ledger, tier, order):
        entry = ledger.entry(name)
        if name != spared and not entry.holds and not entry.pinned and entry.queued_since is None:
            yield name


def _others(ledger: Ledger, tier: Tier, asker: str, spared: str = "") -> tuple[list[str], list[str]]:
    """Return (queued but younger than the asker's wait, busy for now), each in the order they would go."""
    since = ledger.entry(asker).queued_since if asker else None
    queued: list[tuple[float, str]] = []
    account = ledger.account(tier)
    busy = [name for name in account.reserved_by if name != spared and not ledger.entry(name).pinned]
    for name in account.used_by:
        entry = ledger.entry(name)
        if name == spared or entry.pinned or (not entry.holds and entry.queued_since is None):
            continue
        if not entry.holds and since is not None and entry.queued_since is not None and entry.queued_since > since:
            queued.append((-entry.queued_since, name))  # who has waited least goes first
        else:
            busy.append(name)
    return [name for _, name in sorted(queued)], sorted(busy)


def _choose(
    ledger: Ledger, account: Account, order: Iterable[str], short: int, keep: Mapping[str, int]
) -> list[str] | None:
    """Return names from the start of ``order`` whose going frees ``short`` bytes, none of them needlessly; or None.

    A segment is freed with its last user; one in ``keep`` is wanted by the asker, who then has to bring it again.
    """
    users: dict[str, int] = {}

    def freed(name: str, sign: int) -> int:
        """Take ``name`` away (-1) or put it back (+1); return the bytes of segments that only it uses by then."""
        nbytes = 0
        for segment in ledger.entry(name).segments:
            before = users.get(segment, account.users(segment))
            users[segment] = before + sign
            if 0 in (before, before + sign):
                nbytes += account.placed_bytes(segment) - keep.get(segment, 0)
        return nbytes

    chosen: list[str] = []
    for name in order:
        chosen.append(name)
        short -= freed(name, -1)
        if short <= 0:
            break
    if short > 0:
        return None
    for name in reversed(chosen):  # a large one chosen last may spare smaller ones; the youngest are spared first
        back = freed(name, +1)
        if short + back <= 0:
            short += back
            chosen.remove(name)
        else:
            freed(name, -1)
    return chosen


def _missing_after(ledger: Ledger, account: Account, victims: list[str], segments: Mapping[str, int]) -> int:
    """Return what ``reserve`` takes for ``segments`` once ``victims`` are gone."""
    gone = Counter(segment for victim in victims for segment in ledger.entry(victim).segments)
    return sum(nbytes for segment, nbytes in segments.items() if account.users(segment) == gone[segment])


def _below(ledger: Ledger, name: str, tier: Tier) -> Tier:
    """Return the fastest tier under ``tier`` that holds the bytes of ``name`` already; at the least the disk does."""
    below = ledger.tiers[ledger.tiers.index(tier) + 1 :]
    return next((lower for lower in below if name in ledger.account(lower).used_by), Tier.DISK)


def _size(nbytes: int) -> str:
    """Return bytes as people read them: "98.0 MiB"."""
    size, unit = float(nbytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{nbytes} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def setting(tier: Tier) -> str:
    """Return the name of the setting that limits ``tier``."""
    return "BERTH_MEMORY_LIMIT" if tier is Tier.DEVICE else "BERTH_HOST_MEMORY_LIMIT"


def _subject(name: str) -> str:
    return f"model {name!r}" if name else "the request"


def _larger(name: str, total: int, limit: int, tier: Tier) -> str:
    return (
        f"{_subject(name)} needs {_size(total)} and the limit of the {tier.value} tier is {_size(limit)}: it "
        f"can never fit, whatever else is unloaded; raise {setting(tier)} to at least "
        f"{total} bytes, or serve it in a smaller dtype"
    )


def _larger_beside(owner: str, total: int, ledger: Ledger, tier: Tier) -> str:
    limit = ledger.figures(tier).limit
    return (
        f"a request to {_subject(owner)} needs {_size(total)} beside the model's own {_size(ledger.bytes(owner))}, and "
        f"the limit of the {tier.value} tier is {_size(limit)}: ask for less, or raise {setting(tier)} to at least "
        f"{ledger.bytes(owner) + total} bytes"
    )


def _no_room(name: str, missing: int, free: int, tier: Tier, why: str) -> str:
    return (
        f"{_subject(name)} needs {_size(missing)} on the {tier.value} tier, {_size(free)} are free, and {why}; "
        f"unload a model or raise {setting(tier)}"
    )
