"""The requests under way and the moment by which each must be answered; who may not join them.

One sweep looks at the oldest a few times a second: a timer for each request would cost more than the request.
``admit`` refuses before a body is read: a model whose queue this process alone fills, or one that the engine has just
refused a request of. Then the engine is not asked for a twentieth of the wait it told, so that most of what comes over
capacity costs a look into two dictionaries.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from container.errors import BadRequest, ModelTimeout, QueueFull, ServingError

#: What the platform waits for an answer (contract.md section 1.2); a model's own timeout_s is shorter.
LIMIT_S = 60.0
_SWEEP_S = 0.25
#: The part of the wait told by the engine, and the most, for which it is not asked again.
_SHUT_PART = 0.05
_SHUT_S = 0.1


class Cancellable(Protocol):
    """A task, or anything else that answers a request."""

    def cancel(self) -> object:
        """End the work, soon: not before this returns."""


class Flight:
    """One request: its work, its deadline (CLOCK_MONOTONIC seconds), and whether the sweep has ended it."""

    __slots__ = ("deadline", "expired", "model", "work")

    def __init__(self, work: Cancellable | None, deadline: float, model: str | None) -> None:
        self.work = work
        self.deadline = deadline
        self.model = model
        self.expired = False


class Flights:
    """All requests under way, oldest first: all have the same limit. most: of one model."""

    def __init__(self, limit_s: float = LIMIT_S, most: int = 1 << 30) -> None:
        self._limit_s = limit_s
        self._most = most
        self._flights: dict[Flight, None] = {}
        self._of: dict[str, int] = {}
        self._shut: dict[str, tuple[float, QueueFull]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def admit(self, model: str) -> None:
        """Return if a request to ``model`` may be taken in. Raises QueueFull, at once and before its body is read."""
        if self._shut and (shut := self._shut.get(model)) is not None:
            if time.monotonic() < shut[0]:
                raise shut[1].with_traceback(None)  # else it would keep the frames of all whom it was told to
            del self._shut[model]
        if self._of.get(model, 0) >= self._most:
            raise QueueFull(f"{self._most} requests wait for model {model!r} already; try again", retry_after_s=1.0)

    def refused(self, model: str, error: QueueFull) -> None:
        """Note that the engine refused a request to ``model``."""
        shut_s = min(_SHUT_S, _SHUT_PART * (error.retry_after_s or 0.0))
        self._shut[model] = (time.monotonic() + shut_s, error)

    def start(self, model: str | None = None, work: Cancellable | None = None) -> Flight:
        """Return the flight of ``work``, by default the running task; ``end`` it in any case.

        model: whose queue it joins.
        """
        flight = Flight(work or asyncio.current_task(), time.monotonic() + self._limit_s, model)
        self._flights[flight] = None
        if model is not None:
            self._of[model] = self._of.get(model, 0) + 1
        return flight

    def end(self, flight: Flight) -> None:
        """Forget ``flight``: it cannot expire any more."""
        del self._flights[flight]
        if flight.model is not None:
            left = self._of[flight.model] - 1
            if left:
                self._of[flight.model] = left
            else:
                del self._of[flight.model]

    def sweep(self, now: float) -> None:
        """Cancel the work whose deadline is over; it finds ``expired`` set."""
        for flight in self._flights:
            if flight.deadline > now:
                break
            if not flight.expired and flight.work is not None:
                flight.expired = True
                flight.work.cancel()
        for model in [model for model, (until, _) in self._shut.items() if until <= now]:
            del self._shut[model]

    async def keep_sweeping(self) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.sweep(time.monotonic())


def too_late(model: str, body: bytes | None) -> ServingError:
    """Return what a caller is told whose flight expired; ``body``: None if it had not come by then."""
    if body is None:
        return BadRequest(f"the body did not come within {LIMIT_S:.0f} s", status=408)
    return ModelTimeout(f"model {model!r} did not answer within {LIMIT_S:.0f} s, which is all that the platform waits")
