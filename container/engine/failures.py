"""Loads that failed for their archive's own fault, remembered for a while: a storm of retries costs nothing."""

from __future__ import annotations

from container.errors import BadArchive, Failure, LoadFailed, ServingError

#: How long the same answer is given at once.
REMEMBER_S = 60.0

#: A folder as it was: its url and its newest change, so that a mended archive is tried.
Key = tuple[str, int]


class Failures:
    """What is remembered: codes and texts, never the errors, whose frames would keep a half-loaded model in memory."""

    def __init__(self) -> None:
        self._told: dict[Key, tuple[float, Failure]] = {}

    def __len__(self) -> int:
        return len(self._told)

    def remember(self, key: Key, error: ServingError, now_s: float) -> None:
        """Remember ``error``, if trying again cannot help (want of memory passes by itself)."""
        if isinstance(error, BadArchive | LoadFailed):
            self._told = {key: told for key, told in self._told.items() if told[0] > now_s}
            self._told[key] = (now_s + REMEMBER_S, error.to_failure())

    def recall(self, key: Key, now_s: float) -> None:
        """Raise what the last load of ``key`` ended with, if that was not long ago."""
        told = self._told.get(key)
        if told is not None and told[0] > now_s:
            raise ServingError.from_failure(told[1])
