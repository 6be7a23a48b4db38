"""Waiting for memory that a run lacked, for one request: until it is there, its time is up, or its caller is gone."""

from __future__ import annotations

import asyncio

from container.errors import ServingError
from container.memory.loans import Loan, Loans, busy
from container.model.ticket import Ticket


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
