"""The demo's judgement: it must be able to say that an answer is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_test import demo_checks as checks

BOOK = f"Once upon a time. {checks.PROMPT} sitting by her sister on the bank."


def vector(*head):
    return [*head, *[0.0] * (384 - len(head))]


def test_cosines_are_those_of_the_first_vector_with_the_others():
    near, far = checks.near_and_far([vector(1.0), vector(3.0, 4.0), vector(0.0, 2.0)])
    assert (round(near, 9), far) == (0.6, 0.0)


@pytest.mark.parametrize("answer", [{}, [], [vector(1.0)] * 2, [[1.0]] * 3, ["a", "b", "c"], None])
def test_an_answer_that_is_not_three_vectors_is_refused(answer):
    with pytest.raises(ValueError, match="expected three vectors"):
        checks.near_and_far(answer)


@pytest.mark.parametrize(
    "text, same",
    [
        (f"{checks.PROMPT} sitting by", f"{checks.PROMPT} sitting by"),
        (f"{checks.PROMPT} sitting by\ufffd", f"{checks.PROMPT} sitting by"),
        (f"{checks.PROMPT} sitting on", f"{checks.PROMPT} sitting "),
        ("Something else", ""),
    ],
)
def test_agreement_ends_at_the_first_letter_that_is_not_the_books(text, same):
    assert checks.agreement(text, BOOK) == same


@pytest.mark.parametrize("answer", [{}, [], [{}], "text", [["x"]]])
def test_a_writers_answer_without_text_is_refused(answer):
    with pytest.raises(ValueError, match="generated_text"):
        checks.written(answer)


@pytest.mark.parametrize("answer", [{}, [], None, [{"label": "x"}], "text"])
def test_a_readers_answer_without_labels_is_refused(answer):
    with pytest.raises(ValueError):
        checks.best_labels(answer)


def test_labels_come_best_first():
    assert checks.best_labels([{"label": "a", "score": 0.1}, {"label": "b", "score": 0.9}]) == [("b", 0.9), ("a", 0.1)]


def test_a_picture_is_drawn_dark_to_bright_with_every_second_row():
    assert checks.drawing([0, 255, 9, 9, 128, 30], 2) == [" @", "+."]


@given(st.lists(st.integers(1, 10**10), min_size=2))
def test_under_the_limit_the_largest_fits_but_the_two_largest_do_not_together(sizes):
    limit = checks.memory_limit(sizes)
    largest, second = sorted(sizes, reverse=True)[:2]
    assert largest <= limit < largest + second


def test_vectors_are_the_same_up_to_the_last_digits_only():
    one = [vector(1.0), vector(3.0, 4.0), vector(0.0, 2.0)]
    assert checks.same_vectors(one, [vector(1.00000001), *one[1:]])
    assert not checks.same_vectors(one, [vector(1.01), *one[1:]])
    with pytest.raises(ValueError, match="expected three vectors"):
        checks.same_vectors(one, one[:2])


@pytest.mark.parametrize("more, once", [(0, True), (99, True), (100, False), (1900, False)])
def test_copies_are_kept_once_if_all_together_take_less_than_one_more(more, once):
    assert checks.kept_once(300, 300 + more, 100) is once
