import pytest

from bench.pairs import Ratio, Series, alternate
from bench.report import Goal


def test_a_ratio_is_taken_round_by_round_not_between_medians():
    ratio = Ratio(over=Series((10.0, 22.0, 36.0)), under=Series((10.0, 11.0, 12.0)))

    assert ratio.pairs == Series((1.0, 2.0, 3.0))
    assert ratio.text() == "2.00 x (1.00-3.00, only 3 pairs)"


def test_a_ratio_over_something_that_moved_too_much_is_not_measurable():
    ratio = Ratio(over=Series((1.0,) * 5), under=Series((1.0, 1.0, 1.0, 1.0, 1.21)))

    assert not ratio.measurable
    assert ratio.text() == "not measurable (the denominator moved by 21%)"
    assert Goal.ratio("x", ratio, 0.5).verdict == "not measurable"


def test_a_ratio_over_something_steady_is_judged_by_its_median():
    ratio = Ratio(over=Series((3.0, 3.0, 3.0, 1.0, 1.0)), under=Series((1.0, 1.1, 1.0, 1.0, 1.0)))

    assert ratio.measurable
    assert ratio.verdict(2.5, "least") == "reached"
    assert ratio.verdict(3.5, "least") == "missed"
    assert ratio.verdict(2.5, "most") == "missed"


def test_a_verdict_over_fewer_than_five_pairs_says_so():
    ratio = Ratio(over=Series((3.0, 3.0)), under=Series((1.0, 1.0)))

    assert ratio.verdict(2.0, "least") == "reached (too few pairs to quote)"


def test_rounds_of_unlike_number_are_refused():
    with pytest.raises(ValueError, match="2 rounds of A but 1 of B"):
        _ = Ratio(Series((1.0, 2.0)), Series((1.0,))).pairs


def test_contenders_alternate_and_swap_their_order():
    order: list[str] = []

    def run(name: str) -> int:
        order.append(name)
        return len(order)

    results = alternate({"a": lambda: run("a"), "b": lambda: run("b")}, rounds=3)

    assert order == ["a", "b", "b", "a", "a", "b"]
    assert results == {"a": [1, 4, 5], "b": [2, 3, 6]}
