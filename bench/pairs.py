"""Comparing A with B honestly: alternate them, at least five times, and say when there is nothing to say.

A ratio is taken within each pair, where A and B ran seconds apart, and the median of those is shown with the interval
that holds the true median in 15 of 16 cases: of five pairs their whole range, of more pairs less than their range.
It is "not measurable" when both the denominator and the ratio itself moved by more than 20 %. A goal is judged all the
same where the whole interval lies on one side of it (bench/README.md says why).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

B = TypeVar("B")
T = TypeVar("T")
Sense = Literal["least", "most"]

#: Widest spread of a denominator, or of a ratio, under which the ratio may be printed without a goal.
WIDEST = 0.20
FEWEST = 5
#: How often the true median may lie outside of the interval: what the range of five pairs gives.
_OUTSIDE = 2 * 0.5**5


@dataclass(frozen=True, slots=True)
class Series:
    """The values of one contender, one a round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """(largest - smallest) / median: 0.1 means that all values lie within a tenth."""
        return (max(self.values) - min(self.values)) / self.median if self.median else float("inf")

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true median lies in 15 of 16 cases, whatever the distribution; of fewer than six all values.

        Each value is under the median with an even chance, so the k-th smallest of n is over it as often as fewer
        than k of n coins fall on heads (the interval of the sign test).
        """
        ordered, count = sorted(self.values), len(self.values)
        cut = 0
        while 2 * sum(math.comb(count, heads) for heads in range(cut + 2)) / 2**count <= _OUTSIDE:
            cut += 1
        return ordered[cut], ordered[-1 - cut]

    def text(self, digits: int = 1) -> str:
        """Return "median (smallest-largest)"."""
        return f"{self.median:,.{digits}f} ({min(self.values):,.{digits}f}-{max(self.values):,.{digits}f})"


@dataclass(frozen=True, slots=True)
class Ratio:
    """A over B, pair by pair."""

    over: Series
    under: Series

    @property
    def pairs(self) -> Series:
        """Return the ratio of each round. Raises ValueError when the two have not the same number of rounds."""
        if len(self.over.values) != len(self.under.values):
            raise ValueError(f"{len(self.over.values)} rounds of A but {len(self.under.values)} of B")
        both = zip(self.over.values, self.under.values, strict=True)
        return Series(tuple(a / b if b else float("inf") for a, b in both))

    @property
    def spread(self) -> float:
        """How wide the interval of the ratio is, in medians."""
        low, high = self.pairs.interval
        return (high - low) / self.pairs.median if self.pairs.median else float("inf")

    @property
    def measurable(self) -> bool:
        """True when B held still enough to divide by it, or moved together with A."""
        return self.under.spread <= WIDEST or self.spread <= WIDEST

    def verdict(self, goal: float, sense: Sense) -> str:
        """Return "reached", "missed" or "not measurable" for a goal of at least or at most ``goal``."""
        if not self._one_side(goal) and not self.measurable:
            return "not measurable"
        met = self.pairs.median >= goal if sense == "least" else self.pairs.median <= goal
        few = "" if len(self.under.values) >= FEWEST else " (too few pairs to quote)"
        return ("reached" if met else "missed") + few

    def text(self, goal: float | None = None) -> str:
        """Return the median with its interval, or why there is none; its side of ``goal`` may be known."""
        low, high = self.pairs.interval
        count = len(self.under.values)
        few = "" if count >= FEWEST else f", only {count} pairs"
        found = f"{self.pairs.median:.2f} x ({low:.2f}-{high:.2f}{few})"
        if self.measurable:
            return found
        moved = f"the denominator moved by {self.under.spread:.0%}"
        if goal is not None and self._one_side(goal):
            return f"{found}; {moved}"
        return f"not measurable ({moved}, the ratio by {self.spread:.0%})"

    def _one_side(self, goal: float) -> bool:
        """Whether at least five pairs leave no doubt on which side of ``goal`` the median is."""
        low, high = self.pairs.interval
        return len(self.under.values) >= FEWEST and (high < goal or goal < low)


class Between(NamedTuple, Generic[B, T]):
    """A sample of a contender, and of the base just before and just after it."""

    before: B
    of: T
    after: B


def over(taken: Sequence[Between[B, T]], figure: Callable[[T], float], base: Callable[[B], float]) -> Ratio:
    """Return the contender's figure over the base's at the same time: half-way between its neighbours."""
    under = tuple((base(each.before) + base(each.after)) / 2 for each in taken)
    return Ratio(Series(tuple(figure(each.of) for each in taken)), Series(under))


def alternate(contenders: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run every contender once a round, in turned order every other round; return their results by name."""
    results: dict[str, list[T]] = {name: [] for name in contenders}
    for number in range(rounds):
        names: Sequence[str] = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            results[name].append(contenders[name]())
    return results


def between(
    base: Callable[[], B], contenders: Mapping[str, Callable[[], T]], rounds: int
) -> dict[str, list[Between[B, T]]]:
    """Run every contender once a round, in turned order every other round, the base before and after each."""
    results: dict[str, list[Between[B, T]]] = {name: [] for name in contenders}
    before = base()
    for number in range(rounds):
        names: Sequence[str] = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            of = contenders[name]()
            after = base()
            results[name].append(Between(before, of, after))
            before = after
    return results
