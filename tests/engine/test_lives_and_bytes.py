"""The life of models, where their bytes lie, the plan and the ledger in concert: thousands of steps, no byte lost."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from container.engine.lifecycle import Life, Residency, Story, next_life, next_residency
from container.errors import LargerThanTier, NoRoom
from container.memory.ledger import Ledger, Segment, Tier
from container.memory.order import Coldest, lrfu
from container.memory.plan import Demote, Wait, make_room

DEVICE = Tier.DEVICE
NAMES = "abcdef"
SIZES = {"trunk": 9, "other": 6}


class Lives(RuleBasedStateMachine):
    """Models are loaded, called, sunk, lost, quarantined and unloaded by the engine's tables and plans."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger({DEVICE: 30})
        self.coldest = Coldest(self.ledger, DEVICE, lrfu)
        self.life = dict.fromkeys(NAMES, Life.ABSENT)
        self.at = dict.fromkeys(NAMES, Residency.DISK)
        self.stories = {name: Story(name) for name in NAMES}
        self.clock = 0.0

    def live(self, name: str, *events: str) -> None:
        for event in events:
            self.life[name] = next_life(self.life[name], event, self.stories[name])  # type: ignore[arg-type]

    def reside(self, name: str, event: str) -> None:
        self.at[name] = next_residency(self.at[name], event, self.stories[name])  # type: ignore[arg-type]

    def some(self, data: st.DataObject, life: set[Life], at: set[Residency]) -> str | None:
        found = [name for name in NAMES if self.life[name] in life and self.at[name] in at]
        return data.draw(st.sampled_from(found)) if found else None

    def sink(self, name: str) -> None:
        self.ledger.demote(name, DEVICE)
        self.reside(name, "sink")

    @rule(name=st.sampled_from(NAMES), trunk=st.sampled_from(["", "trunk", "other"]), own=st.integers(0, 40))
    def load(self, name: str, trunk: str, own: int) -> None:
        if self.life[name] is Life.ABSENT:
            self.clock += 1
            parts = [Segment(trunk, SIZES[trunk])] if trunk else []
            self.ledger.add(name, [*parts, Segment(f"own-{name}", own)], at=self.clock)
            self.live(name, "load")

    @rule(data=st.data())
    def rise(self, data: st.DataObject) -> None:
        """One plan, carried out: who has to go is sinking when this returns, or the asker is on its way."""
        name = self.some(data, {Life.LOADING, Life.READY}, {Residency.DISK})
        if name is None:
            return
        try:
            steps = make_room(self.ledger, DEVICE, name, order=self.coldest)
        except Wait:
            return
        except (LargerThanTier, NoRoom):
            if self.life[name] is Life.LOADING:
                self.live(name, "failed")
                self.ledger.drop(name)
                self.live(name, "gone")
            return
        demotes = [step for step in steps if isinstance(step, Demote)]
        for step in demotes:
            assert self.at[step.name] is Residency.DEVICE
            self.sink(step.name)
        if not demotes:
            self.ledger.reserve(name, DEVICE)
            self.reside(name, "rise")

    @rule(data=st.data(), whole=st.booleans())
    def arrive(self, data: st.DataObject, whole: bool) -> None:
        name = self.some(data, set(Life), {Residency.RISING})
        if name is None:
            return
        if whole:
            self.ledger.commit(name, DEVICE)
            self.reside(name, "at_device")
            if self.life[name] is Life.LOADING:
                self.live(name, "loaded", "measured")
        else:
            self.ledger.demote(name, DEVICE)
            self.reside(name, "failed")

    @rule(data=st.data())
    def gone_from_the_device(self, data: st.DataObject) -> None:
        name = self.some(data, set(Life), {Residency.SINKING})
        if name is not None:
            self.ledger.release(name, DEVICE)
            self.reside(name, "at_disk")
            if self.life[name] is Life.LOADING and data.draw(st.booleans()):
                self.live(name, "failed")
                self.ledger.drop(name)
                self.live(name, "gone")

    @rule(data=st.data(), more=st.booleans())
    def call(self, data: st.DataObject, more: bool) -> None:
        name = self.some(data, {Life.READY, Life.DRAINING}, {Residency.DEVICE})
        if name is not None and more and self.life[name] is Life.READY:
            self.clock += 1
            self.ledger.hold(name)
            self.ledger.touch(name, self.clock)
        elif name is not None and self.ledger.entry(name).holds:
            self.ledger.unhold(name)

    @precondition(lambda self: Life.READY in self.life.values())
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """Its process died: what ran has failed, the bytes went with it."""
        name = self.some(data, {Life.READY, Life.DRAINING, Life.QUARANTINED}, {Residency.DEVICE})
        if name is not None:
            while self.ledger.entry(name).holds:
                self.ledger.unhold(name)
            self.ledger.demote(name, DEVICE)
            self.ledger.release(name, DEVICE)
            self.reside(name, "lost")
            if self.life[name] is Life.READY and data.draw(st.booleans()):
                self.live(name, "quarantine")

    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        name = self.some(data, {Life.READY, Life.QUARANTINED}, set(Residency))
        if name is not None:
            self.live(name, "unload")

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """Drained: what is left of it goes, and its name with it."""
        name = self.some(data, {Life.DRAINING}, {Residency.DISK, Residency.DEVICE})
        if name is None or self.ledger.entry(name).holds:
            return
        self.live(name, "idle")
        if self.at[name] is Residency.DEVICE:
            self.sink(name)
            self.ledger.release(name, DEVICE)
            self.reside(name, "at_disk")
        self.ledger.drop(name)
        self.live(name, "gone")

    @invariant()
    def lives_and_bytes_say_the_same(self) -> None:
        self.ledger.check()
        sums = self.ledger.figures(DEVICE)
        assert sums.used + sums.reserved + sums.leaving + sums.free == sums.limit
        for name in NAMES:
            assert (name in self.ledger) == (self.life[name] is not Life.ABSENT), self.stories[name]
            at = self.at[name]
            assert (name in self.ledger.used_by(DEVICE)) == (at is Residency.DEVICE), self.stories[name]
            assert (name in self.ledger.reserved_by(DEVICE)) == (at is Residency.RISING), self.stories[name]
            assert (name in self.ledger.leaving(DEVICE)) == (at is Residency.SINKING), self.stories[name]


def test_thousands_of_steps_keep_lives_and_bytes_together():
    run_state_machine_as_test(Lives, settings=settings(max_examples=80, stateful_step_count=60, deadline=None))
