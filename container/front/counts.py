"""How many requests ended how: counted here, added up over all fronts by the engine."""

from __future__ import annotations

from container.wire import messages as m


class Requests:
    """(operation, status) -> requests, as a sum and as what was not yet sent to the engine."""

    def __init__(self) -> None:
        self._new: dict[tuple[str, int], int] = {}
        self._sent: dict[tuple[str, int], int] = {}

    def add(self, operation: str, status: int) -> None:
        """Count one request."""
        key = (operation, status)
        self._new[key] = self._new.get(key, 0) + 1

    def take(self) -> m.Counts | None:
        """Return what came since the last ``take``, None if nothing did."""
        if not self._new:
            return None
        new, self._new = self._new, {}
        for key, count in new.items():
            self._sent[key] = self._sent.get(key, 0) + count
        return m.Counts([(operation, status, count) for (operation, status), count in new.items()])

    def totals(self) -> dict[tuple[str, int], int]:
        """Return all that this process ever counted."""
        return {key: self._sent.get(key, 0) + self._new.get(key, 0) for key in {**self._sent, **self._new}}
