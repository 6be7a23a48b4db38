"""What one process counts, as /metrics shows it."""

from __future__ import annotations

from container.metrics import BOUNDS_S, Metrics


def test_counters_add_up_by_their_labels() -> None:
    metrics = Metrics()
    metrics.add("a_total", code="ok")
    metrics.add("a_total", 2, code="ok")
    metrics.add("a_total", code="bad")
    assert metrics.rows() == [("a_total", {"code": "ok"}, 3.0), ("a_total", {"code": "bad"}, 1.0)]


def test_a_histogram_is_cumulative_and_ends_with_all() -> None:
    metrics = Metrics()
    for seconds in (0.0005, 0.001, 0.3, 1000.0):
        metrics.observe("wait_seconds", seconds)
    rows = {(name, labels.get("le")): value for name, labels, value in metrics.rows()}
    assert rows["wait_seconds_bucket", "0.001"] == 2
    assert rows["wait_seconds_bucket", "0.5"] == 3
    assert rows["wait_seconds_bucket", "+Inf"] == rows["wait_seconds_count", None] == 4
    assert rows["wait_seconds_sum", None] == 1000.3015
    assert len(rows) == len(BOUNDS_S) + 3


def test_what_is_forgotten_is_gone_and_nothing_else() -> None:
    metrics = Metrics()
    for model in ("a", "b"):
        metrics.add("calls_total", code="ok", model=model)
        metrics.observe("call_seconds", 1.0, model=model)
    metrics.add("calls_total", code="ok")
    metrics.forget(model="a")
    assert {labels.get("model") for _, labels, _ in metrics.rows()} == {"b", None}
