"""Laws of the allocator: no overlap, alignment, everything comes back, a slot only after its events."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from container.memory.arena import Arena, Slot


class Later:
    """An event that passes when it is told to."""

    def __init__(self) -> None:
        self.passed = False

    def query(self) -> bool:
        return self.passed

    def synchronize(self) -> None:
        self.passed = True


def test_the_smallest_hole_that_fits_is_cut() -> None:
    arena = Arena(4096)
    slots = [arena.take(size, name) for size, name in ((512, "a"), (256, "b"), (1024, "c"), (256, "d"))]
    arena.give(slots[0]), arena.give(slots[2])
    assert arena.take(300, "e") == Slot(0, 512, "e")
    assert arena.take(300, "f") == Slot(768, 512, "f")
    assert arena.take(1, "g") == Slot(1280, 256, "g")
    assert (arena.take(4096), arena.largest_hole) == (None, 4096 - 2048)
    arena.check()


def test_a_slot_is_used_again_only_after_its_last_event() -> None:
    arena, copied, computed = Arena(1024), Later(), Later()
    slot = arena.take(1024, "a")
    arena.give(slot, [copied, computed])
    for event in (copied, computed):
        assert (arena.take(256), arena.leaving_bytes, arena.used_bytes) == (None, 1024, 0)
        event.passed = True
    assert arena.take(1024, "b") == Slot(0, 1024, "b")
    with pytest.raises(KeyError):
        arena.give(slot)


def test_the_cheapest_neighbours_are_named_and_those_that_stay_are_not() -> None:
    arena = Arena(6 * 256)
    for name in "abcdef":
        arena.take(256, name)
    costs = {"a": 1.0, "b": 5.0, "c": None, "d": 2.0, "e": 3.0, "f": 2.0}
    tags = lambda nbytes: [slot.tag for slot in arena.cheapest_run(nbytes, lambda slot: costs[slot.tag]) or []]  # noqa: E731
    assert [tags(256), tags(512), tags(768), tags(1024)] == [["a"], ["d", "e"], ["d", "e", "f"], []]
    arena.give(next(slot for slot in arena._slots.values() if slot.tag == "b"))
    assert tags(512) == ["a"]


class Allocating(RuleBasedStateMachine):
    """Any order of taking, giving, passing and growing keeps the laws."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(1 << 14)
        self.taken: list[Slot] = []
        self.events: list[Later] = []

    @rule(nbytes=st.integers(0, 1 << 13))
    def take(self, nbytes: int) -> None:
        largest = self.arena.largest_hole
        slot = self.arena.take(nbytes, str(len(self.taken)))
        assert (slot is None) == (max(nbytes, 1) > largest), "a hole that fits is found, one that does not is not"
        if slot is not None:
            assert nbytes <= slot.bytes < nbytes + 256 or slot.bytes == 256
            self.taken.append(slot)

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), count=st.integers(0, 2))
    def give(self, data: st.DataObject, count: int) -> None:
        slot = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        after = [Later() for _ in range(count)]
        self.events += after
        self.arena.give(slot, after)

    @precondition(lambda self: self.events)
    @rule(data=st.data())
    def one_event_passes(self, data: st.DataObject) -> None:
        self.events.pop(data.draw(st.integers(0, len(self.events) - 1))).passed = True

    @rule(nbytes=st.integers(0, 1 << 12))
    def grow(self, nbytes: int) -> None:
        self.arena.grow(nbytes)

    @rule(nbytes=st.integers(256, 1 << 14), stays=st.integers(2, 5))
    def a_run_makes_the_hole_that_it_promises(self, nbytes: int, stays: int) -> None:
        run = self.arena.cheapest_run(nbytes, lambda slot: None if slot.start // 256 % stays == 0 else slot.bytes)
        for slot in run or []:
            assert slot.start // 256 % stays
            self.taken.remove(slot)
            self.arena.give(slot)
        assert run is None or self.arena.largest_hole >= nbytes

    @invariant()
    def it_holds(self) -> None:
        self.arena.check()
        assert self.arena.used_bytes == sum(slot.bytes for slot in self.taken)

    def teardown(self) -> None:
        for event in self.events:
            event.passed = True
        for slot in self.taken:
            self.arena.give(slot)
        assert self.arena.largest_hole == self.arena.capacity


TestAllocating = Allocating.TestCase
TestAllocating.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_the_end_is_cut_off_where_it_is_a_hole() -> None:
    arena = Arena(4 * 256)
    first, second = arena.take(256), arena.take(256)
    assert first is not None
    assert second is not None
    assert not arena.shrink(3 * 256)
    assert arena.shrink(256)
    assert arena.shrink(256)
    assert not arena.shrink(256)
    arena.give(second)
    assert arena.shrink(256)
    assert arena.capacity == 256
    arena.check()
    arena.grow(512)
    assert arena.largest_hole == 512
    arena.check()
