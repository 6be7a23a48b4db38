"""The requests under way and the moment by which each must be answered.

One sweep looks at the oldest a few times a second: a timer for each request would cost more than the request.
"""

from __future__ import annotations

import asyncio
import time

#: What the platform waits for an answer (contract.md section 1.2); a model's own timeout_s is shorter.
LIMIT_S = 60.0
_SWEEP_S = 0.25


class Flight:
    """One request: its task, its deadline (CLOCK_MONOTONIC seconds), and whether the sweep has ended it."""

    __slots__ = ("deadline", "expired", "task")

    def __init__(self, task: asyncio.Task[None] | None, deadline: float) -> None:
        self.task = task
        self.deadline = deadline
        self.expired = False


class Flights:
    """All requests under way, oldest first: all have the same limit."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._flights: dict[Flight, None] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def start(self) -> Flight:
        """Return the flight of the running task; ``end`` it in any case."""
        flight = Flight(asyncio.current_task(), time.monotonic() + self._limit_s)
        self._flights[flight] = None
        return flight

    def end(self, flight: Flight) -> None:
        """Forget ``flight``: it cannot expire any more."""
        del self._flights[flight]

    def sweep(self, now: float) -> None:
        """Cancel the tasks whose deadline is over; they find ``expired`` set."""
        for flight in self._flights:
            if flight.deadline > now:
                break
            if not flight.expired and flight.task is not None:
                flight.expired = True
                flight.task.cancel()

    async def keep_sweeping(self) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.sweep(time.monotonic())
