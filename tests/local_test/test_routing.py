"""Which container gets a call, as values."""

from hypothesis import given
from hypothesis import strategies as st

from local_test.routing import HOT, Burden, choose

burdens = st.lists(
    st.builds(Burden, st.booleans(), st.integers(0, 2 * HOT), st.integers(0, 4 * HOT), st.integers(0, 9)), min_size=1
)


def test_a_new_model_goes_where_the_fewest_are():
    assert choose([Burden(False, 0, 0, 3), Burden(False, 0, 5, 1)]) == 1


def test_a_cold_model_stays_on_its_one_container_however_busy_that_is_with_others():
    assert choose([Burden(True, 1, 50, 9), Burden(False, 0, 0, 0)]) == 0


def test_a_hot_model_is_copied_to_a_container_that_is_less_than_half_as_busy():
    assert choose([Burden(True, HOT, HOT, 1), Burden(False, 0, 1, 5)]) == 1
    assert choose([Burden(True, HOT, HOT, 1), Burden(False, 0, HOT // 2, 5)]) == 0
    assert choose([Burden(True, HOT - 1, HOT, 1), Burden(False, 0, 0, 0)]) == 0


def test_copies_share_the_calls():
    assert choose([Burden(True, HOT, HOT, 1), Burden(True, 1, 1, 1), Burden(False, 0, 0, 0)]) == 1


@given(burdens)
def test_somebody_is_chosen_and_a_holder_unless_all_holders_are_hot(everybody):
    chosen = everybody[choose(everybody)]
    holders = [each for each in everybody if each.has_model]
    if holders and not chosen.has_model:
        busiest = min(holders, key=lambda each: each.in_flight)
        assert busiest.calls >= HOT
        assert 2 * chosen.in_flight < busiest.in_flight
