"""The rule of a soak and its means: creep is told from jumping about, right from wrong, a cause from none."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.soak.crew import Excuses
from tests.soak.flat import judge, slope
from tests.soak.models import near

TIMES = [5.0 * step for step in range(120)]


def noisy(rise: float, spread: float) -> list[float]:
    dice = random.Random(3)
    return [200 + rise * at / TIMES[-1] + dice.uniform(-spread, spread) for at in TIMES]


@pytest.mark.parametrize(("rise", "flat"), [(0.0, True), (3.0, True), (20.0, False), (-50.0, True)])
def test_memory_that_creeps_is_told_from_memory_that_jumps_about(rise: float, flat: bool) -> None:
    verdict = judge("engine", "anonymous_mib", TIMES, noisy(rise, 5.0))
    assert verdict.flat is flat
    assert verdict.rise == pytest.approx(rise, abs=2.0)


def test_a_few_peaks_are_no_creep_and_a_descriptor_more_every_minute_is() -> None:
    peaks = [9.0 if step % 20 else 40.0 for step in range(120)]
    assert judge("front", "descriptors", TIMES, peaks).flat
    assert not judge("front", "descriptors", TIMES, [9.0 + int(at / 60) for at in TIMES]).flat


@given(st.floats(-100, 100), st.floats(-1e4, 1e4))
def test_the_slope_of_a_line_is_the_lines(rise: float, start: float) -> None:
    assert slope(TIMES, [start + rise * at for at in TIMES]) == pytest.approx(rise, abs=1e-6)


def test_a_long_run_is_thinned_out_and_judged_the_same() -> None:
    times = [float(at) for at in range(5000)]
    assert slope(times, [2.0 * at for at in times]) == pytest.approx(2.0)
    assert slope([], []) == slope([1.0], [1.0]) == 0.0


def test_refusals_are_excused_for_the_models_of_a_fault_while_it_lasts_and_for_nobody_else() -> None:
    excuses = Excuses()
    with excuses.cover("a") as window:
        now = window.began
        assert excuses.hold("a", now - 1, now + 0.1)
        assert not excuses.hold("b", now - 1, now + 0.1)
        assert not excuses.hold("a", now - 2, now - 1)
    assert not excuses.hold("a", window.end + 0.1, window.end + 0.2)
    with excuses.cover() as everybody:
        assert excuses.hold("b", everybody.began, everybody.began)


@pytest.mark.parametrize(
    ("answer", "right", "same"),
    [
        ([0.1, {"a": 2}], [0.100001, {"a": 2}], True),
        ([0.1, {"a": 2}], [0.11, {"a": 2}], False),
        ([0.1], [0.1, 0.1], False),
        ({"a": 1.0}, {"a": 1.0, "b": 1.0}, False),
        ("text", 1.0, False),
        ("text", "text", True),
    ],
)
def test_an_answer_is_near_only_if_all_of_it_is(answer: object, right: object, same: bool) -> None:
    assert near(answer, right) is same
