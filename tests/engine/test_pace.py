from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.engine.pace import Pace


def paced(item_s: float, count: int, batch: int = 1) -> Pace:
    """A pace after ``count`` answers with a backlog, ``batch`` at a time."""
    pace, now_s = Pace(), 100.0
    pace.started(0, now_s)
    for number in range(1, count + 1):
        pace.started(5, now_s)
        if number % batch == 0:
            now_s += item_s * batch
            for _ in range(batch):
                pace.answered(now_s)
    return pace


def test_nothing_is_refused_before_a_pace_is_known() -> None:
    assert not Pace().too_late(10_000, 0.001)
    assert not paced(0.01, 3).too_late(10_000, 0.001)


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_the_pace_is_that_of_answers_however_they_are_batched(batch: int) -> None:
    pace = paced(0.01, 640, batch)
    assert pace.wait_s(100) == pytest.approx(1.0, rel=0.15)
    assert pace.too_late(100, 1.0)
    assert not pace.too_late(60, 1.0)


def test_a_request_that_nobody_is_before_is_never_refused() -> None:
    assert not paced(10.0, 5).too_late(0, 0.001)


def test_time_in_which_nobody_asked_does_not_count() -> None:
    pace = paced(0.01, 100)
    pace.started(0, 5000.0)
    for number in range(1, 51):
        pace.answered(5000.0 + 0.01 * number)
    assert pace.wait_s(1) == pytest.approx(0.01, rel=0.2)


def test_a_model_that_was_slow_for_a_while_gets_its_queue_back() -> None:
    pace, now_s = paced(0.5, 5), 200.0
    longest = backlog = 0
    for _ in range(200):  # somebody comes at every moment, and the model answers one in 10 ms again
        while not pace.too_late(backlog, 1.0) and backlog < 50:
            pace.started(backlog, now_s)
            backlog += 1
        longest = max(longest, backlog)
        for _ in range(backlog):
            now_s += 0.01
            pace.answered(now_s)
        backlog = 0
    assert longest == 50


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 100), st.floats(0, 10)), max_size=60))
def test_whatever_happens_waits_are_finite_and_grow_with_the_backlog(steps: list[tuple[bool, int, float]]) -> None:
    pace, now_s = Pace(), 0.0
    for comes, backlog, later_s in steps:
        now_s += later_s
        if comes:
            pace.started(backlog, now_s)
        else:
            pace.answered(now_s)
        assert 0 <= pace.wait_s(1) <= pace.wait_s(2) < float("inf")
