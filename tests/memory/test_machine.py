"""The machine's figures beside the ledger's, and sinking ahead of need."""

from __future__ import annotations

import asyncio
import os

import pytest

from container.errors import LargerThanTier, NoRoom
from container.memory import plan
from container.memory.keeper import Keeper
from container.memory.ledger import Ledger, Segment, Tier
from container.memory.machine import Machine, disk_missing
from container.memory.plan import Marks

DEVICE = Tier.DEVICE


def book(limit: int, **models: str) -> Ledger:
    """Models of 10 bytes, all up, the first used longest ago; "held", "pinned" or "" each."""
    ledger = Ledger({DEVICE: limit})
    for at, (name, mark) in enumerate(models.items()):
        ledger.add(name, [Segment(name, 10)], pinned=mark == "pinned", at=float(at))
        ledger.reserve(name, DEVICE)
        ledger.commit(name, DEVICE)
        if mark == "held":
            ledger.hold(name)
    return ledger


def volume(blocks: int, free: int, flags: int = 0) -> os.statvfs_result:
    """A volume of blocks of 4 KiB; root has some more than ``free``."""
    return os.statvfs_result((4096, 4096, blocks, free + 100, free, 0, 0, 0, flags, 255))


@pytest.mark.parametrize(
    ("seen", "missing"),
    [
        (volume(1 << 28, 1 << 14), 0),  # a terabyte with 64 MiB free
        (volume(1 << 28, (1 << 14) - 1), 4096),
        (volume(6144, 200), 0),  # 24 MiB, of which 2 in a hundred are kept
        (volume(6144, 0), 503316),
        (volume(6144, 0, os.ST_RDONLY), 0),  # a picture of a disk, or one that is mounted to be read
        (volume(0, 0), 0),  # a file system that does not tell
    ],
)
def test_a_disk_is_full_when_less_is_free_than_must_stay(seen, missing):
    assert max(0, disk_missing(seen)) == missing


def names(steps: list[plan.Demote]) -> list[str]:
    return [step.name for step in steps]


@pytest.mark.parametrize(
    ("marks", "gone"),
    [
        (Marks(1.0, 1.0), []),
        (Marks(0.8, 0.5), []),  # 80 of 100 are taken, and that is not over the mark
        (Marks(0.75, 0.7), ["c"]),
        (Marks(0.75, 0.5), ["c", "d", "e"]),
        (Marks(0.1, 0.1), ["c", "d", "e", "f", "g"]),  # those in use, the pinned and the spared stay
    ],
)
def test_idle_models_sink_to_the_low_mark_once_the_high_one_is_passed(marks, gone):
    ledger = book(100, a="held", b="pinned", c="", d="", e="", f="", g="", new="")
    assert names(plan.ease(ledger, DEVICE, marks, spared="new")) == gone


def test_the_keeper_sinks_in_the_background_and_once_at_a_time():
    async def scenario() -> None:
        ledger = book(100, a="", b="", c="", d="", e="", f="", g="", h="", i="", j="")
        running = 0

        async def sink(name: str, tier: Tier) -> None:
            nonlocal running
            running += 1
            assert running == 1
            ledger.demote(name, tier)
            await asyncio.sleep(0)
            ledger.release(name, tier)
            running -= 1

        keeper = Keeper(ledger, sink, "sink", Marks(0.9, 0.5))
        keeper.ease("j")
        keeper.ease("j")
        assert ledger.figures(DEVICE).used == 100, "nobody waits for it"
        for _ in range(40):
            await asyncio.sleep(0)
        assert ledger.figures(DEVICE).used == 50
        assert "j" in ledger.used_by(DEVICE)
        ledger.check()
        platform = Keeper(book(10, a=""), sink, "platform", Marks(0.1, 0.1))
        platform.ease("")
        await asyncio.sleep(0)
        assert platform.ledger.figures(DEVICE).used == 10

    asyncio.run(scenario())


def test_where_the_machine_has_less_than_the_limit_says_models_sink_for_each_other():
    free = 25
    ledger = book(100, a="", b="", c="")
    machine = Machine(ledger, {DEVICE: lambda: free})
    assert machine.gaps() == {DEVICE: 100 - 30 - 25}
    assert ledger.figures(DEVICE).limit == 55
    ledger.add("new", [Segment("new", 30)])
    assert plan.make_room(ledger, DEVICE, "new") == [
        plan.Demote("a", DEVICE, Tier.DISK),
        plan.Reserve("new", DEVICE, 30),
    ]
    ledger.check()


def test_what_the_machine_lacks_for_now_is_no_final_refusal_and_what_the_limit_lacks_is():
    ledger = book(100, a="pinned")
    Machine(ledger, {DEVICE: lambda: 5}).look()
    ledger.add("new", [Segment("new", 40)])
    with pytest.raises(NoRoom, match="others on this machine leave no more than 15 bytes"):
        plan.make_room(ledger, DEVICE, "new")
    ledger.add("huge", [Segment("huge", 101)])
    with pytest.raises(LargerThanTier, match="limit of the device tier is 100 bytes"):
        plan.make_room(ledger, DEVICE, "huge")
    ledger.set_cap(DEVICE, None)
    assert plan.make_room(ledger, DEVICE, "new") == [plan.Reserve("new", DEVICE, 40)]


def test_what_is_reserved_and_not_there_yet_is_not_promised_twice():
    """A process of authors' code reads 60 of the 100 bytes that are free, of which the machine sees none at first."""
    free = {"now": 100}
    ledger = book(200)
    machine = Machine(ledger, {DEVICE: lambda: free["now"]})
    machine.gaps()
    for name in ("first", "second"):
        ledger.add(name, [Segment(name, 60)])
    ledger.reserve("first", DEVICE)
    for arrived in (0, 20, 60):
        free["now"] = 100 - arrived
        machine.gaps()
        assert ledger.figures(DEVICE)[:5] == (100, 0, 60, 0, 40), f"{arrived} bytes are there"
        with pytest.raises(plan.Wait):
            plan.make_room(ledger, DEVICE, "second")
    ledger.commit("first", DEVICE)
    machine.gaps()
    assert ledger.figures(DEVICE) == (100, 60, 0, 0, 40, 0)
    ledger.demote("first", DEVICE)
    for gone in (0, 60):
        free["now"] = 40 + gone
        machine.gaps()
        assert ledger.figures(DEVICE).limit == 100, f"{gone} of the leaving bytes are back"
    ledger.release("first", DEVICE)
    machine.gaps()
    assert ledger.figures(DEVICE) == (100, 0, 0, 0, 100, 0)


def test_a_machine_that_others_fill_or_leave_during_a_load_is_believed_as_far_as_it_can_be_told():
    free = {"now": 100}
    ledger = book(200)
    machine = Machine(ledger, {DEVICE: lambda: free["now"]})
    machine.gaps()
    ledger.add("loads", [Segment("loads", 60)])
    ledger.reserve("loads", DEVICE)
    for now, limit in (
        (60, 100),  # 40 have arrived, or others took them
        (20, 80),  # others took 20 at the least
        (0, 60),  # what is reserved is never over the limit by that: it may have arrived
        (90, 90),  # and others left
    ):
        free["now"] = now
        machine.gaps()
        assert ledger.figures(DEVICE).limit == limit
        assert ledger.figures(DEVICE).over == 0
    ledger.commit("loads", DEVICE)
    free["now"] = 40
    machine.gaps()
    assert ledger.figures(DEVICE).limit == 100


def test_a_machine_with_more_than_the_limit_changes_nothing_and_one_over_it_is_told_by_the_book():
    ledger = book(100, a="", b="")
    before = ledger.figures(DEVICE)
    machine = Machine(ledger, {DEVICE: lambda: 1000})
    assert machine.gaps() == {DEVICE: -920}
    assert ledger.figures(DEVICE) == before
    Machine(ledger, {DEVICE: lambda: -15}).look()
    assert (ledger.figures(DEVICE).over, ledger.figures(DEVICE).free) == (15, 0)
    ledger.check()
