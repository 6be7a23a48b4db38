"""Waiting for memory that a run lacked, for one request: until it is there, its time is up, or its caller is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from container.errors import ModelTimeout, ServingError
from container.memory.loans import Loan, Loans, busy
from container.model.ticket import Ticket


def told_late(name: str, ticket: Ticket, line: Sequence[Ticket]) -> ServingError:
    """Return what ``ticket`` of model ``name`` is told at its deadline: memory was busy, if it lacked that.

    line: who waits for the model; all of them wait for memory if the first does.
    """
    if ticket.late is not None:
        return ticket.late
    lacks = ticket.lacks()
    if ticket in line:
        lacks = line[0].needs and (ticket.needs or line[0].needs)
    if lacks:
        return busy(name, lacks)
    waited_s = time.monotonic() - ticket.arrived_s
    return ModelTimeout(
        f"model {name!r} gave no answer within {waited_s:.1f} s; make the work shorter, or raise timeout_s in the "
        "archive's berth.json (the platform itself waits 60 s)"
    )


async def wait(loans: Loans, name: str, ticket: Ticket) -> Loan | None:
    """Return the bytes that ``ticket`` of model ``name`` needs, None once nobody waits for its answer any more.

    Raises LargerThanTier, NoRoom, MemoryBusy.
    """
    ticket.late = busy(name, ticket.needs)
    waiting = asyncio.ensure_future(loans.wait(name, ticket.needs, ticket.arrived_s, ticket.deadline_s))

    def give_up() -> None:
        """Let those behind it in the line have their turn."""
        waiting.cancel()

    ticket.on_drop = give_up
    try:
        loan = await waiting
    except asyncio.CancelledError:
        if ticket.dropped:
            return None
        raise
    except ServingError:
        if ticket.dropped:
            return None
        raise
    if ticket.dropped:
        loan.end()
        return None
    return loan
