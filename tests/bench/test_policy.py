import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from bench import policy
from bench.policy import Workload, foresight


def best_by_trying(trace: list[int], room: int) -> int:
    """Hits of the best choice of whom to let go, every choice tried."""

    def most(number: int, up: frozenset[int]) -> int:
        if number == len(trace):
            return 0
        model = trace[number]
        if model in up:
            return 1 + most(number + 1, up)
        kept = [up] if len(up) < room else [up - {gone} for gone in up]
        return max(most(number + 1, each | {model}) for each in kept)

    return most(0, frozenset())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 3))
@settings(deadline=None)
def test_nobody_has_more_hits_than_who_knows_the_trace(trace, room):
    hits = foresight(Workload([1] * 5, trace, [[0.2] * 5]), room, counted_from=0) * len(trace)

    assert round(hits) == best_by_trying(trace, room)


def test_the_oracle_is_the_sum_of_the_largest_probabilities_and_has_less_than_who_knows_the_trace():
    work = policy.workload(0)
    chances = sorted((1 / rank**0.9 for rank in range(1, 1001)), reverse=True)
    size = work.bytes[0]
    found = {room: policy.oracle(work, room * size).hits for room in (50, 500)}

    assert {room: round(hits, 3) for room, hits in found.items()} == {50: 0.510, 500: 0.873}
    for room, hits in found.items():
        assert abs(hits - sum(itertools.islice(chances, room)) / sum(chances)) < 1e-9
    assert {room: round(hits / foresight(work, room), 2) for room, hits in found.items()} == {50: 0.87, 500: 0.94}
