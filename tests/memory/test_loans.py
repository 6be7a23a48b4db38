"""What is lent beside weights: counted, in turn, never at the owner's cost, and back to the last byte."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from container.errors import LargerThanTier, MemoryBusy, NoRoom
from container.memory.keeper import Keeper
from container.memory.ledger import Ledger, Segment, Tier
from container.memory.loans import Loan, Loans

DEVICE = Tier.DEVICE


class Desk:
    """A keeper with models a, b, ... of 10 bytes each on a device of ``limit`` bytes."""

    def __init__(self, limit: int, models: str, *, policy: Any = "sink", pinned: str = "", held: str = "") -> None:
        self.ledger = Ledger({DEVICE: limit})
        self.keeper = Keeper(self.ledger, self.sink, policy)
        self.loans = Loans(self.keeper)
        for at, name in enumerate(models):
            self.ledger.add(name, [Segment(name, 10)], pinned=name in pinned, at=float(at))
            self.ledger.reserve(name, DEVICE)
            self.ledger.commit(name, DEVICE)
            if name in held:
                self.ledger.hold(name)

    async def sink(self, name: str, tier: Tier) -> None:
        self.ledger.demote(name, tier)
        await asyncio.sleep(0)
        self.ledger.release(name, tier)
        self.keeper.changed()

    def up(self) -> set[str]:
        return {name for name in self.ledger.used_by(DEVICE) if not self.ledger.entry(name).owner}

    async def wait(self, owner: str, nbytes: int, within_s: float = 5.0) -> Loan:
        now = time.monotonic()
        return await self.loans.wait(owner, nbytes, now, now + within_s)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 20))  # type: ignore[arg-type]


def test_a_loan_is_bytes_of_the_tier_until_it_ends():
    async def scenario() -> None:
        desk = Desk(30, "a")
        before = desk.ledger.figures(DEVICE)
        loan = await desk.loans.take("a", 5, 12)
        assert loan is not None
        assert (loan.bytes, desk.loans.bytes("a"), desk.loans.bytes()) == (12, 12, 12)
        assert desk.ledger.figures(DEVICE).used == 22
        desk.ledger.check()
        loan.end()
        assert (desk.loans.bytes("a"), desk.ledger.figures(DEVICE)) == (0, before)
        assert len(desk.ledger) == 1

    run(scenario)


def test_idle_models_sink_for_a_loan_but_never_its_owner_nor_who_is_held():
    async def scenario() -> None:
        desk = Desk(40, "abcd", held="b")
        loan = await desk.loans.take("a", 20, 20)
        assert loan is not None
        assert desk.up() == {"a", "b"}
        assert await desk.loans.take("a", 5, 5) is None, "what is left is the owner and a model with work in flight"
        desk.ledger.check()

    run(scenario)


def test_what_there_is_is_lent_if_it_is_enough_to_begin():
    async def scenario() -> None:
        desk = Desk(30, "ab", held="ab")
        loan = await desk.loans.take("a", 4, 25)
        assert loan is not None
        assert loan.bytes == 10
        assert await desk.loans.take("b", 1, 25) is None

    run(scenario)


def test_who_waits_gets_it_when_running_work_ends_and_nobody_overtakes():
    async def scenario() -> None:
        desk = Desk(30, "a", held="a")
        first = await desk.loans.take("a", 15, 15)
        assert first is not None
        large = asyncio.ensure_future(desk.wait("a", 18))
        small = asyncio.ensure_future(desk.wait("a", 2))
        await asyncio.sleep(0)
        assert await desk.loans.take("a", 1, 1) is None, "there are 5 bytes, but others were here before"
        first.end()
        assert [(await large).bytes, (await small).bytes] == [18, 2]
        desk.ledger.check()

    run(scenario)


def test_who_waits_too_long_is_told_to_come_again_and_stands_in_nobody_s_way():
    async def scenario() -> None:
        desk = Desk(30, "a", held="a")
        first = await desk.loans.take("a", 15, 15)
        assert first is not None
        behind = asyncio.ensure_future(desk.wait("a", 5))
        with pytest.raises(MemoryBusy) as told:
            await asyncio.gather(desk.wait("a", 18, 0.05))
        assert told.value.retry_after_s
        assert (await behind).bytes == 5
        assert desk.ledger.figures(DEVICE).used == 30
        gone = asyncio.ensure_future(desk.wait("a", 7))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        first.end()
        assert (await desk.wait("a", 15)).bytes == 15
        desk.ledger.check()

    run(scenario)


def test_what_can_never_be_had_is_refused_at_once_with_the_arithmetic():
    async def scenario() -> None:
        desk = Desk(30, "ab", pinned="b", held="a")
        assert desk.loans.room("a") == 20
        with pytest.raises(LargerThanTier, match=r"needs 21 bytes beside the model's own 10 bytes.*at least 31 bytes"):
            await desk.wait("a", 21)
        with pytest.raises(NoRoom, match="pinned"):
            await desk.wait("a", 15)
        assert desk.loans.room("nobody") == 0
        assert await desk.loans.take("nobody", 1, 1) is None
        desk.ledger.check()

    run(scenario)


def test_where_nothing_may_sink_running_generations_are_waited_for_and_models_are_not():
    async def scenario() -> None:
        desk = Desk(40, "ab", policy="platform", held="a")
        loan = await desk.loans.take("a", 15, 15)
        assert loan is not None
        waiting = asyncio.ensure_future(desk.wait("a", 18))
        await asyncio.sleep(0)
        assert not waiting.done()
        loan.end()
        assert (await waiting).bytes == 18
        with pytest.raises(NoRoom, match="platform"):
            await desk.wait("a", 25)
        assert desk.up() == {"a", "b"}

    run(scenario)


def test_an_older_request_has_the_place_of_a_model_that_younger_ones_wait_for():
    async def scenario() -> None:
        desk = Desk(30, "ab", held="a")
        desk.ledger.queue("b", time.monotonic() + 1)
        assert (await desk.wait("a", 15)).bytes == 15
        assert desk.up() == {"a"}

    run(scenario)


class Lending(RuleBasedStateMachine):
    """Models come up and sink, loans are taken, waited for and ended in any order; the book holds after each."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.desk = Desk(60, "abc")
        self.lent: list[Loan] = []
        self.waiting: list[asyncio.Future[Loan]] = []

    def turn(self) -> None:
        async def turns() -> None:
            for _ in range(12):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        for done in [each for each in self.waiting if each.done()]:
            self.waiting.remove(done)
            if not done.cancelled() and done.exception() is None:
                self.lent.append(done.result())

    @rule(owner=st.sampled_from("abc"), least=st.integers(1, 30), more=st.integers(0, 30))
    def take(self, owner: str, least: int, more: int) -> None:
        loan = self.loop.run_until_complete(self.desk.loans.take(owner, least, least + more))
        if loan is not None:
            assert least <= loan.bytes <= least + more
            self.lent.append(loan)
        self.turn()

    @rule(owner=st.sampled_from("abc"), nbytes=st.integers(1, 60))
    def wait(self, owner: str, nbytes: int) -> None:
        self.waiting.append(asyncio.ensure_future(self.desk.wait(owner, nbytes), loop=self.loop))
        self.turn()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting)).cancel()
        self.turn()

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        loan = data.draw(st.sampled_from(self.lent))
        self.lent.remove(loan)
        loan.end()
        self.turn()

    @rule(name=st.sampled_from("abc"))
    def rise(self, name: str) -> None:
        if self.desk.ledger.figures(DEVICE).free >= 10 and name not in self.desk.ledger.used_by(DEVICE):
            self.desk.ledger.reserve(name, DEVICE)
            self.desk.ledger.commit(name, DEVICE)

    @invariant()
    def the_book_holds(self) -> None:
        ledger = self.desk.ledger
        ledger.check()
        sums = ledger.figures(DEVICE)
        assert sums.over == 0
        assert sums.used == 10 * len(self.desk.up()) + sum(loan.bytes for loan in self.lent)
        assert self.desk.loans.bytes() == sum(loan.bytes for loan in self.lent)

    def teardown(self) -> None:
        for each in self.waiting:
            each.cancel()
        self.turn()
        for loan in self.lent:
            loan.end()
        self.desk.ledger.check()
        assert self.desk.loans.bytes() == 0
        assert len(self.desk.ledger) == 3
        self.loop.close()


TestLending = Lending.TestCase
TestLending.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
