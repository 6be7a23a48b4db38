"""Is a figure flat? Decided over plain numbers. Pure.

The rule: over the last two thirds of a run a line is fitted to a figure (Theil and Sen's: the median of the slopes
between all pairs of samples, so that single peaks do not count), and what it rises by over that time must stay under
the figure's bound. Falling is allowed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

#: figure -> what it may rise by over the last two thirds; memory besides by ``SHARE`` of its median.
BOUNDS = {"anonymous_mib": 4.0, "rss_mib": 4.0, "descriptors": 1.0, "threads": 1.0, "maps": 8.0, "files": 1.0}
SHARE = 0.03
#: Fewer samples say nothing.
FEWEST = 20
#: More pairs than those of so many samples add nothing.
_MOST = 300


class Verdict(NamedTuple):
    """median and rise of a figure over the judged time, the bound, and whether the rise is under it."""

    role: str
    figure: str
    median: float
    rise: float
    bound: float

    @property
    def flat(self) -> bool:
        """Whether the figure does not creep."""
        return self.rise < self.bound


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Return the median slope between all pairs of samples, 0 for fewer than two."""
    step = max(1, -(-len(times) // _MOST))
    points = list(zip(times, values, strict=True))[::step]
    slopes = [
        (later - value) / (then - at)
        for index, (at, value) in enumerate(points)
        for then, later in points[index + 1 :]
        if then > at
    ]
    return statistics.median(slopes) if slopes else 0.0


def judge(role: str, figure: str, times: Sequence[float], values: Sequence[float]) -> Verdict:
    """Return the verdict on samples of ``figure``, all of them within the judged time."""
    median = statistics.median(values)
    bound = BOUNDS[figure] + (SHARE * median if figure.endswith("_mib") else 0.0)
    return Verdict(role, figure, median, slope(times, values) * (times[-1] - times[0]), bound)
