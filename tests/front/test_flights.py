"""Who may join the requests under way."""

from __future__ import annotations

import traceback

import pytest

from container.errors import QueueFull
from container.front import flights as module
from container.front.flights import Flights


def test_a_refusal_told_again_and_again_keeps_no_trace_of_those_it_was_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHUT_S", 1e9)
    monkeypatch.setattr(module, "_SHUT_PART", 1e6)
    flights = Flights()
    error = QueueFull("full", retry_after_s=50.0)
    flights.refused("m", error)
    for _ in range(20):
        with pytest.raises(QueueFull) as raised:
            flights.admit("m")
        assert raised.value is error
    assert len(list(traceback.walk_tb(error.__traceback__))) < 5
