"""Figures of the engine and counts of the fronts -> the text that Prometheus reads.

A figure is (name, labels, value); its kind is read from its name: ``_total`` is a counter, ``_bucket``, ``_sum`` and
``_count`` are parts of a histogram, anything else is a gauge.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
#: As the engine names the sum over all fronts.
REQUESTS = "berth_http_requests_total"

#: Family -> what it says; every family that there is has a line here.
HELP = {
    "berth_http_requests": "HTTP requests by operation and status code",
    "berth_engine_up": "1 while this front is connected to the engine",
    "berth_invocations": 'Invocations by how they ended: "ok", or the reason that the caller got',
    "berth_invocation_seconds": "From a call's arrival at the engine to its answer",
    "berth_load_seconds": "From the order to load a model to its being ready",
    "berth_memory_bytes": "Bytes of models on a tier: limit, used, reserved, leaving, free, over (a lowered limit)",
    "berth_shared_bytes": "Bytes on a tier that more than one model uses",
    "berth_saved_bytes": "Bytes that a tier would hold besides if nothing were shared",
    "berth_cache_bytes": "Bytes of keys and values that running generations hold",
    "berth_tokenizer_bytes": "Bytes of tokenizers that models have (used) or that lie in free room for none (idle)",
    "berth_memory_gap_bytes": "Bytes that limit and ledger have free for models on a tier and the machine has not",
    "berth_models": "Registered models by the tier that they are on",
    "berth_promotions": "Rises: models brought up to a tier",
    "berth_demotions": "Sinkings: models taken down from a tier",
    "berth_requests_in_flight": "Calls that wait or run",
}
_PARTS = ("_bucket", "_sum", "_count")

Figure = tuple[str, dict[str, str], float]


class _Family(NamedTuple):
    name: str
    kind: str


def exposition(figures: Iterable[Figure]) -> bytes:
    """Return ``figures`` in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(list(figures)))
    return generate_latest(registry)


def request_figures(totals: dict[tuple[str, int], int]) -> list[Figure]:
    """Return what one front counted as figures."""
    return [
        (REQUESTS, {"route": operation, "code": str(status)}, float(count))
        for (operation, status), count in sorted(totals.items())
    ]


class _Figures(Collector):
    def __init__(self, figures: list[Figure]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Yield each family with its samples, as prometheus_client's collectors do."""
        histograms = {name.removesuffix("_bucket") for name, _, _ in self._figures if name.endswith("_bucket")}
        families: dict[_Family, Metric] = {}
        for name, labels, value in self._figures:
            family = _family(name, histograms)
            if family not in families:
                told = HELP.get(family.name, family.name.replace("_", " "))
                families[family] = Metric(family.name, told, family.kind)
            families[family].add_sample(name, labels, value)
        yield from families.values()


def _family(name: str, histograms: set[str]) -> _Family:
    for part in _PARTS:
        if name.endswith(part) and name.removesuffix(part) in histograms:
            return _Family(name.removesuffix(part), "histogram")
    if name.endswith("_total"):
        return _Family(name.removesuffix("_total"), "counter")
    return _Family(name, "gauge")
