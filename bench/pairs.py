"""Comparing A with B honestly: alternate them, at least five times, and say when there is nothing to say.

A ratio is taken within each round, where A and B ran seconds apart, and the median of those is shown with its range.
When the denominator itself moved by more than 20 % between rounds the ratio is "not measurable".
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")

#: Widest spread of a denominator under which a ratio may be printed.
WIDEST = 0.20
FEWEST = 5


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
    def measurable(self) -> bool:
        """True when B held still enough to divide by it."""
        return self.under.spread <= WIDEST

    def verdict(self, goal: float, sense: Literal["least", "most"]) -> str:
        """Return "reached", "missed" or "not measurable" for a goal of at least or at most ``goal``."""
        if not self.measurable:
            return "not measurable"
        met = self.pairs.median >= goal if sense == "least" else self.pairs.median <= goal
        few = "" if len(self.under.values) >= FEWEST else " (too few pairs to quote)"
        return ("reached" if met else "missed") + few

    def text(self) -> str:
        """Return the median with its range, or why there is none."""
        if not self.measurable:
            return f"not measurable (the denominator moved by {self.under.spread:.0%})"
        few = "" if len(self.under.values) >= FEWEST else f", only {len(self.under.values)} pairs"
        pairs = self.pairs
        return f"{pairs.median:.2f} x ({min(pairs.values):.2f}-{max(pairs.values):.2f}{few})"


def alternate(contenders: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run every contender once a round, in turned order every other round; return their results by name."""
    results: dict[str, list[T]] = {name: [] for name in contenders}
    for number in range(rounds):
        names: Sequence[str] = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            results[name].append(contenders[name]())
    return results
