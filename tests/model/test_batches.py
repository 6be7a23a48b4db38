import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.model.batches import cut


@given(
    st.lists(st.integers(0, 600), max_size=80),
    st.integers(1, 3000),
    st.integers(1, 40),
    st.floats(0, 0.9),
    st.integers(0, 100),
)
def test_every_input_comes_once_and_no_run_is_over_its_bounds(sizes, budget, max_items, max_padding, run_cost):
    batches = cut(sizes, budget, max_items, max_padding, run_cost)
    assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))
    for batch in batches:
        held = [sizes[index] for index in batch]
        computed = len(held) * max(held)
        assert len(held) <= max_items
        assert len(held) == 1 or computed <= budget
        assert computed - sum(held) <= max(run_cost, max_padding * computed)


def test_inputs_of_one_size_go_together_up_to_the_bounds():
    assert [len(batch) for batch in cut([16] * 32, 4096, 32)] == [32]
    assert sorted(len(batch) for batch in cut([16] * 32, 256, 32)) == [16, 16]
    assert sorted(len(batch) for batch in cut([1] * 70, 4096, 32)) == [6, 32, 32]


def test_what_is_over_the_budget_goes_alone():
    assert cut([5000, 10, 10], 100, 32) == [[1, 2], [0]]
    assert cut([5000], 100, 32) == [[0]]


def test_nothing_waits_means_no_run():
    assert cut([], 100, 32) == []


def test_short_texts_are_not_split_for_less_than_a_run_costs():
    assert [len(batch) for batch in cut([4, 5, 6, 7], 4096, 32)] == [4]


@pytest.mark.parametrize(("shortest", "longest", "most_runs"), [(8, 24, 5), (8, 127, 13), (4, 512, 16), (100, 128, 3)])
def test_padding_stays_under_a_tenth_in_few_runs_whatever_the_spread(shortest, longest, most_runs):
    draw = random.Random(7)
    computed = real = runs = 0
    for _ in range(200):
        sizes = [draw.randint(shortest, longest) for _ in range(32)]
        batches = cut(sizes, 4096, 32)
        computed += sum(len(batch) * max(sizes[index] for index in batch) for batch in batches)
        real += sum(sizes)
        runs += len(batches)
    assert (computed - real) / computed < 0.1
    assert runs / 200 <= most_runs
