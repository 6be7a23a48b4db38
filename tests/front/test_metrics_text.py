"""Figures in Prometheus' own words, read back by its own parser."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from container.front.metrics_text import exposition, request_figures
from container.metrics import Metrics


def test_counters_gauges_and_histograms_come_out_as_what_they_are() -> None:
    counted = Metrics()
    counted.add("berth_promotions_total", 2)
    counted.observe("berth_load_seconds", 0.3)
    rows = [("berth_models", {"tier": "device"}, 3.0), ("berth_models", {"tier": "disk"}, 4.0), *counted.rows()]
    families = {each.name: each for each in text_string_to_metric_families(exposition(rows).decode())}
    assert {name: each.type for name, each in families.items()} == {
        "berth_models": "gauge",
        "berth_promotions": "counter",
        "berth_load_seconds": "histogram",
    }
    assert {tuple(each.labels.values()): each.value for each in families["berth_models"].samples} == {
        ("device",): 3.0,
        ("disk",): 4.0,
    }
    load = {(each.name, each.labels.get("le")): each.value for each in families["berth_load_seconds"].samples}
    assert load["berth_load_seconds_bucket", "0.25"] == 0
    assert load["berth_load_seconds_bucket", "0.5"] == load["berth_load_seconds_bucket", "+Inf"] == 1
    assert load["berth_load_seconds_sum", None] == 0.3


def test_a_gauge_that_ends_in_count_is_not_taken_for_a_histogram() -> None:
    (family,) = text_string_to_metric_families(exposition([("berth_thread_count", {}, 7.0)]).decode())
    assert (family.name, family.type) == ("berth_thread_count", "gauge")


def test_labels_are_escaped() -> None:
    evil = 'a"b\\c\nd'
    (family,) = text_string_to_metric_families(exposition([("berth_models", {"model": evil}, 1.0)]).decode())
    assert family.samples[0].labels == {"model": evil}


def test_what_a_front_counted_becomes_figures() -> None:
    assert request_figures({("ping", 200): 3, ("none", 404): 1}) == [
        ("berth_http_requests_total", {"route": "none", "code": "404"}, 1.0),
        ("berth_http_requests_total", {"route": "ping", "code": "200"}, 3.0),
    ]
