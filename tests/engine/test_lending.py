"""A request that waits for memory: who hangs up stands in nobody's way."""

from __future__ import annotations

import asyncio
import time

import pytest

from container.engine import lending
from container.errors import MemoryBusy, ModelTimeout
from container.model.ticket import Ticket
from container.payload import Payload
from tests.memory.test_loans import Desk, run


def ticket(needs: int, within_s: float = 5.0) -> Ticket:
    now = time.monotonic()
    return Ticket(Payload(b""), lambda result: None, now, now + within_s, needs=needs)


def test_who_hangs_up_leaves_the_line_and_the_next_one_has_its_turn():
    async def scenario() -> None:
        desk = Desk(30, "a", held="a")
        taken = await desk.loans.take("a", 15, 15)
        assert taken is not None
        gone, behind = ticket(20), ticket(5)
        first = asyncio.ensure_future(lending.wait(desk.loans, "a", gone))
        second = asyncio.ensure_future(lending.wait(desk.loans, "a", behind))
        await asyncio.sleep(0.01)
        assert not second.done()
        gone.drop()
        assert await first is None
        loan = await second
        assert loan is not None
        assert loan.bytes == 5
        assert desk.loans.bytes("a") == 20
        desk.ledger.check()

    run(scenario)


def test_who_waits_to_the_end_of_its_time_is_told_why():
    async def scenario() -> None:
        desk = Desk(30, "a", held="a")
        assert await desk.loans.take("a", 15, 15) is not None
        late = ticket(20, 0.02)
        with pytest.raises(MemoryBusy):
            await lending.wait(desk.loans, "a", late)
        assert isinstance(late.late, MemoryBusy), "what the sweep says if it comes first"
        task = asyncio.ensure_future(lending.wait(desk.loans, "a", ticket(20)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert desk.loans.bytes() == 15

    run(scenario)


def test_who_had_its_memory_is_told_that_the_model_was_slow_and_who_lacked_it_that_memory_was_busy():
    running, first, behind = ticket(20), ticket(20), ticket(0)
    inside = ticket(0)
    inside.lacks = lambda: 7
    line = [first, behind]
    told = [lending.told_late("a", each, line) for each in (running, inside, first, behind)]
    assert [type(each) for each in told] == [ModelTimeout, MemoryBusy, MemoryBusy, MemoryBusy]
    assert [f"{nbytes} bytes" in str(error) for nbytes, error in zip((7, 20, 20), told[1:], strict=True)] == [True] * 3
    assert isinstance(lending.told_late("a", behind, [behind]), ModelTimeout), "it waits for the model itself to rise"
