from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from container.model import queues
from container.model.queues import STARVING_S, Candidate, next_batch, next_model

candidates = st.lists(
    st.builds(
        Candidate,
        st.sampled_from("abcdef"),
        st.integers(1, 500),
        st.floats(0, 10, allow_nan=False),
        st.floats(0, 2, allow_nan=False),
    ),
    max_size=6,
    unique_by=lambda candidate: candidate.name,
)


def test_nobody_waiting_means_nobody_runs() -> None:
    assert next_model([]) is None


def test_more_queued_work_for_the_same_run_time_goes_first() -> None:
    assert next_model([Candidate("few", 2, 0.1, 0.05), Candidate("many", 20, 0.1, 0.05)]) == "many"


def test_a_quick_model_goes_before_a_slow_one_of_the_same_queue() -> None:
    assert next_model([Candidate("slow", 5, 0.1, 1.0), Candidate("quick", 5, 0.1, 0.01)]) == "quick"


def test_what_was_passed_over_often_goes_before_quicker_work_that_has_just_come() -> None:
    quick = Candidate("quick", 2, 0.002, 0.002)
    assert next_model([quick, Candidate("seldom", 1, 0.001, 0.002)]) == "quick"
    assert next_model([quick, Candidate("seldom", 1, 0.010, 0.002)]) == "seldom"
    assert next_model([quick, Candidate("slow", 1, 0.010, 0.050)]) == "quick"
    assert next_model([quick, Candidate("slow", 1, 0.300, 0.050)]) == "slow"


@given(candidates)
def test_the_oldest_starving_model_goes_before_everything(waiting: list[Candidate]) -> None:
    chosen = next_model(waiting)
    starving = [candidate for candidate in waiting if candidate.oldest_s >= STARVING_S]
    if starving:
        assert chosen is not None
        assert next(c.oldest_s for c in starving if c.name == chosen) == max(c.oldest_s for c in starving)
    else:
        assert (chosen is None) == (not waiting)


@given(st.integers(1, 1000), st.integers(1, 64), st.integers(1, 8), st.booleans())
def test_a_batch_is_never_empty_nor_over_its_limits(queued: int, max_items: int, free: int, share: bool) -> None:
    size = next_batch(queued, max_items, free, share)
    assert 1 <= size <= min(queued, max_items)
    if not share:
        assert size == min(queued, max_items)


def test_free_lanes_divide_what_waits_for_one_model() -> None:
    assert [next_batch(8, 32, 2, True), next_batch(4, 32, 1, True)] == [4, 4]


def test_lanes_share_the_cores_and_a_short_job_wants_one_thread() -> None:
    assert [queues.threads(4, busy, 1.0) for busy in (0, 1, 2, 3, 4, 9)] == [4, 4, 2, 1, 1, 1]
    assert queues.threads(4, 1, queues.ALONE_S / 2) == 1
