import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.pairs import Between, Ratio, Series, alternate, between, over
from bench.report import Goal


def test_a_ratio_is_taken_round_by_round_not_between_medians():
    ratio = Ratio(over=Series((10.0, 22.0, 36.0)), under=Series((10.0, 11.0, 12.0)))

    assert ratio.pairs == Series((1.0, 2.0, 3.0))
    assert ratio.text() == "2.00 x (1.00-3.00, only 3 pairs)"


def test_a_ratio_whose_denominator_and_itself_moved_too_much_is_not_measurable():
    ratio = Ratio(over=Series((1.0,) * 5), under=Series((1.0, 1.0, 1.0, 1.0, 1.3)))

    assert not ratio.measurable
    assert ratio.text() == "not measurable (the denominator moved by 30%, the ratio by 23%)"
    assert Goal.ratio("x", ratio, 0.9) == Goal("x", "at least 0.9 x", ratio.text(), "not measurable")


def test_a_ratio_that_held_still_while_both_moved_together_is_measurable():
    ratio = Ratio(over=Series((1.0, 2.0, 3.0, 2.0, 1.1)), under=Series((1.0, 2.0, 3.0, 2.0, 1.0)))

    assert ratio.text() == "1.00 x (1.00-1.10)"
    assert ratio.verdict(1.05, "most") == "reached"


def test_a_goal_that_no_pair_came_near_is_judged_however_much_they_moved():
    ratio = Ratio(over=Series((3.0, 2.0, 5.0, 2.0, 2.5)), under=Series((1.0, 1.0, 1.5, 1.0, 1.0)))

    assert not ratio.measurable
    assert Goal.ratio("x", ratio, 1.5) == Goal(
        "x", "at least 1.5 x", "2.50 x (2.00-3.33); the denominator moved by 50%", "reached"
    )
    assert ratio.verdict(1.5, "most") == "missed"
    assert ratio.verdict(2.0, "least") == "not measurable"


def test_four_pairs_on_one_side_of_a_goal_do_not_settle_it():
    ratio = Ratio(over=Series((3.0, 2.0, 5.0, 2.0)), under=Series((1.0, 1.0, 1.5, 1.0)))

    assert ratio.verdict(1.5, "least") == "not measurable"


@pytest.mark.parametrize(("count", "left_out"), [(2, 0), (5, 0), (8, 0), (9, 1), (11, 1), (12, 2), (30, 9)])
def test_the_interval_leaves_out_as_many_values_as_coins_would(count, left_out):
    values = tuple(float(number) for number in range(count))

    assert Series(values).interval == (float(left_out), float(count - 1 - left_out))


@given(st.lists(st.floats(0.1, 1000), min_size=1, max_size=40))
def test_the_median_lies_in_its_interval_and_that_in_the_range(values):
    series = Series(tuple(values))
    low, high = series.interval

    assert min(values) <= low <= series.median <= high <= max(values)


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


def test_the_base_is_taken_before_and_after_each_contender_and_divides_by_the_middle():
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    results = between(lambda: run("base"), {"a": lambda: run("a"), "b": lambda: run("b")}, rounds=2)

    assert order == ["base", "a", "base", "b", "base", "b", "base", "a", "base"]
    assert results == {
        "a": [Between(1.0, 2.0, 3.0), Between(7.0, 8.0, 9.0)],
        "b": [Between(3.0, 4.0, 5.0), Between(5.0, 6.0, 7.0)],
    }
    assert over(results["a"], lambda a: 3 * a, lambda base: base / 2) == Ratio(Series((6.0, 24.0)), Series((1.0, 4.0)))
