"""How fast a model answers while requests wait for it, and from that how long a new one would wait. Pure.

Told by answers per second rather than by the time of one batch: that is right whatever shares the lanes, however large
the batches are, and in whichever process the model runs. Only time in which somebody waits counts, and it adds up over
backlogs that are shorter than a window: a pace that has become too slow admits only short ones, and could not be put
right otherwise. A model that nobody waits for keeps its pace, and a new request to it is never refused (its backlog is
none).
"""

from __future__ import annotations

#: A pace is taken from answers over at least this long with a backlog.
_WINDOW_S = 0.25
#: A request is refused if its turn would come after this part of its time: the rest is for its own run.
_SHARE = 0.8


class Pace:
    """One model's pace. Times are seconds of any one clock."""

    __slots__ = ("_answered", "_busy_s", "_item_s", "_since_s")

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._busy_s = 0.0
        self._answered = 0
        self._item_s = 0.0

    def started(self, backlog: int, now_s: float) -> None:
        """Note a request that found ``backlog`` others before it; with none, nobody had waited until now."""
        if backlog == 0 or self._since_s is None:
            self._since_s = now_s

    def answered(self, now_s: float) -> None:
        """Note one answer, whatever it was."""
        if self._since_s is None:
            return
        self._answered += 1
        self._busy_s += now_s - self._since_s
        self._since_s = now_s
        if self._busy_s >= _WINDOW_S:
            self._item_s = self._busy_s / self._answered
            self._busy_s, self._answered = 0.0, 0

    def wait_s(self, backlog: int) -> float:
        """Return the seconds that ``backlog`` requests take; 0 until a pace is known."""
        return backlog * self._item_s

    def too_late(self, backlog: int, left_s: float) -> bool:
        """Say whether a request that comes behind ``backlog`` others would not be answered within ``left_s``."""
        return self.wait_s(backlog) > _SHARE * left_s
