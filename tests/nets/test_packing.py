from hypothesis import given
from hypothesis import strategies as st

from container.nets.packing import pack, round_rows

lengths = st.lists(st.integers(1, 600), max_size=60)


@given(lengths, st.integers(1, 1000))
def test_every_text_lies_in_exactly_one_run_and_its_length_in_the_group_at_its_place(lengths, budget):
    seen = []
    for run in pack(lengths, budget):
        laid = [length for count, length in run.groups for _ in range(count)]
        assert laid == [lengths[index] for index in run.order] == sorted(laid)
        assert run.rows == sum(laid) + run.filler == round_rows(sum(laid))
        seen += run.order
    assert sorted(seen) == list(range(len(lengths)))


@given(lengths, st.integers(1, 1000))
def test_a_run_is_within_the_budget_or_a_single_text(lengths, budget):
    assert all(run.rows - run.filler <= budget or len(run.order) == 1 for run in pack(lengths, budget))


@given(st.integers(1, 100_000))
def test_rounding_adds_less_than_a_quarter_and_never_takes_away(rows):
    assert 0 <= round_rows(rows) - rows < max(4, rows / 4)
    assert round_rows(round_rows(rows)) == round_rows(rows)


def test_up_to_512_rows_there_are_few_heights_to_compile_kernels_for():
    assert len({round_rows(rows) for rows in range(1, 513)}) == 24


def test_an_example_of_three_texts():
    (run,) = pack([7, 3, 7], budget=100)
    assert (run.order, run.groups, run.filler, run.rows) == ([1, 0, 2], [(1, 3), (2, 7)], 3, 20)


def test_nothing_needs_no_run():
    assert pack([], budget=10) == []
