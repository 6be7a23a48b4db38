"""One request on its way through queues and lanes, and what it has been lent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from container.errors import Failure, ServingError
from container.payload import Payload


class Loan(Protocol):
    """Bytes of the device that a run has beside the weights."""

    bytes: int

    def end(self) -> None:
        """Give them back."""


def _nothing() -> int:
    """Lack no memory."""
    return 0


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way; ``settle`` is called exactly once unless the ticket is dropped or given back first.

    Times are seconds of CLOCK_MONOTONIC. ``on_drop`` tells whoever has the work that nobody waits for it any more.
    part: takes pieces of the answer before ``settle`` is called; None = they are gathered into one answer.
    give_back: takes the ticket when its model cannot answer it as it is now; None = it cannot be given back. most: no
    more than this many in a batch, now and for the model's later requests; 0 = as the manifest says.
    needs: bytes that were claimed for it and not to be had; it is given back and waits for a loan of them. late: what
    its caller is told at the deadline, None = that the model took too long. lacks: the bytes for want of
    which a run has not begun with it.
    """

    payload: Payload
    settle: Callable[[Payload | Failure], None]
    arrived_s: float
    deadline_s: float = float("inf")
    on_drop: Callable[[], None] | None = None
    dropped: bool = False
    part: Callable[[Payload], None] | None = None
    give_back: Callable[[Ticket], None] | None = None
    most: int = 0
    needs: int = 0
    loan: Loan | None = None
    late: ServingError | None = None
    lacks: Callable[[], int] = _nothing
    _pieces: list[Payload] | None = None

    def begin(self, piece: Payload) -> None:
        """Hand a piece of the answer on, or keep it for the whole."""
        if self._pieces is None:
            self._pieces = []
        if self.part is None:
            self._pieces.append(piece)
        else:
            self.part(piece)

    def end(self, result: Payload | Failure) -> None:
        """Settle with ``result``, or for an answer in pieces with what is left of it."""
        self.dropped = True
        if self._pieces is not None and isinstance(result, Payload):
            if self.part is not None:  # as a piece, for a large Answer could overtake the pieces before it
                self.part(result)
                result = msgspec.structs.replace(result, body=b"")
            elif self._pieces:
                body = b"".join([*(piece.body for piece in self._pieces), result.body])
                result = msgspec.structs.replace(self._pieces[0], body=body)
        self.settle(result)

    @property
    def may_repeat(self) -> bool:
        """Whether the work can be done once more: nothing of the answer has gone out."""
        return self.part is None or self._pieces is None

    def renew(self) -> None:
        """Be as before the work began."""
        self.dropped, self.on_drop, self._pieces, self.lacks = False, None, None, _nothing

    def drop(self) -> None:
        """Forget the request; what already runs of it runs to its end for nothing."""
        self.dropped = True
        self.repay()
        if self.on_drop is not None:
            self.on_drop()

    def part_ways(self) -> None:
        """Forget who waited, for good: their functions know the ticket, and a circle keeps its payload for long."""
        self.settle, self.on_drop, self.part, self.give_back = _nobody, None, None, None
        self.lacks = _nothing

    def repay(self) -> None:
        """Give back what was lent to it, if it has not begun."""
        if self.loan is not None:
            self.loan.end()
            self.loan = None


def _nobody(result: Payload | Failure) -> None:
    """Take a result that nobody waits for."""
