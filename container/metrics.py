"""Counters, gauges and histograms of one process, as the (name, labels, value) rows that /metrics shows.

Plain dictionaries, because a request may cost a microsecond here, not ten. Names follow Prometheus: ``_total``,
``_seconds``, ``_bytes``.
"""

from __future__ import annotations

import bisect

Row = tuple[str, dict[str, str], float]
_Key = tuple[str, tuple[tuple[str, str], ...]]

#: Upper bounds in seconds, from a no-op to the platform's own limit.
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """What one process counts; not thread-safe, one event loop owns it."""

    def __init__(self) -> None:
        self._counters: dict[_Key, float] = {}
        self._histograms: dict[_Key, list[float]] = {}

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        key = (name, tuple(labels.items()))
        self._counters[key] = self._counters.get(key, 0.0) + value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Add one duration to a histogram."""
        key = (name, tuple(labels.items()))
        buckets = self._histograms.get(key)
        if buckets is None:
            buckets = self._histograms[key] = [0.0] * (len(BOUNDS_S) + 2)
        buckets[bisect.bisect_left(BOUNDS_S, seconds)] += 1
        buckets[-1] += seconds

    def forget(self, **labels: str) -> None:
        """Drop every count that has these labels: what they name is gone for good."""
        gone = labels.items()
        for kept in (self._counters, self._histograms):
            for key in [key for key in kept if gone <= dict(key[1]).items()]:
                del kept[key]

    def rows(self) -> list[Row]:
        """Return everything counted, histograms as ``_bucket`` (cumulative, ``le``), ``_sum`` and ``_count``."""
        rows: list[Row] = [(name, dict(labels), value) for (name, labels), value in self._counters.items()]
        for (name, labels), buckets in self._histograms.items():
            seen = 0.0
            for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), buckets, strict=False):
                seen += count
                rows.append((f"{name}_bucket", {**dict(labels), "le": bound}, seen))
            rows.append((f"{name}_sum", dict(labels), buckets[-1]))
            rows.append((f"{name}_count", dict(labels), seen))
        return rows
