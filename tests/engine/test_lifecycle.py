import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.engine.lifecycle import (
    CALLABLE,
    LIFE,
    RESIDENCY,
    SHOWN,
    InvalidTransition,
    Life,
    Residency,
    Story,
    next_life,
    next_residency,
)


def walk(events, start=Life.ABSENT, step=next_life):
    story, state = Story("cats"), start
    for event in events:
        state = step(state, event, story)
    return state


def test_a_model_is_loaded_measured_drained_and_forgotten():
    assert walk(["load", "loaded", "measured"]) is Life.READY
    assert walk(["load", "loaded", "measured", "unload", "idle"]) is Life.LEAVING
    assert walk(["load", "loaded", "measured", "unload", "expired", "gone"]) is Life.ABSENT


@pytest.mark.parametrize("before", [["load"], ["load", "loaded"]])
def test_a_failed_load_leaves_no_name_behind(before):
    assert walk([*before, "failed"]) not in SHOWN
    assert walk([*before, "failed", "gone"]) is Life.ABSENT


def test_a_quarantined_model_comes_back_only_by_unload_and_load():
    up = ["load", "loaded", "measured"]
    assert walk([*up, "quarantine", "unload", "idle", "gone", *up]) is Life.READY
    with pytest.raises(InvalidTransition):
        walk([*up, "quarantine", "load"])


def test_a_second_load_of_a_ready_model_is_no_transition():
    with pytest.raises(InvalidTransition, match=r"model 'cats': no arrow from ready for event 'load'"):
        walk(["load", "loaded", "measured", "load"])


def test_an_invalid_transition_tells_the_story():
    with pytest.raises(InvalidTransition) as caught:
        walk(["load", "loaded", "gone"])
    assert str(caught.value).endswith("absent --load--> loading; loading --loaded--> sizing")
    assert (caught.value.name, caught.value.state, caught.value.event) == ("cats", Life.SIZING, "gone")


def test_bytes_rise_and_sink_on_two_tiers_and_on_three():
    def residency(events):
        return walk(events, Residency.DISK, next_residency)

    assert residency(["rise", "at_device"]) is Residency.DEVICE
    assert residency(["rise", "at_device", "sink", "at_disk"]) is Residency.DISK
    assert residency(["rise", "failed", "at_disk"]) is Residency.DISK
    assert residency(["rise", "at_device", "sink", "at_host", "rise", "at_device"]) is Residency.DEVICE
    assert residency(["rise", "at_device", "lost"]) is Residency.DISK


def test_bytes_do_not_arrive_unasked():
    with pytest.raises(InvalidTransition, match="nothing yet"):
        next_residency(Residency.DISK, "at_device", Story("cats"))


def test_nothing_rises_part_of_the_way():
    """What waits in RAM has sunk there; nothing is fetched from the disk before it is wanted on the device."""
    with pytest.raises(InvalidTransition):
        walk(["rise", "at_host"], Residency.DISK, next_residency)


def test_bytes_that_are_still_leaving_cannot_rise():
    with pytest.raises(InvalidTransition):
        walk(["rise", "at_device", "sink", "rise"], Residency.DISK, next_residency)


@pytest.mark.parametrize("table, start", [(LIFE, Life.ABSENT), (RESIDENCY, Residency.DISK)])
def test_every_state_can_be_reached_and_left_for_the_start(table, start):
    def closure(edges):
        seen = {start}
        while new := {b for a, b in edges if a in seen} - seen:
            seen |= new
        return seen

    forward = {(a, after) for (a, _), after in table.items()}
    assert closure(forward) == set(type(start))
    assert closure({(b, a) for a, b in forward}) == set(type(start))


def test_whatever_holds_bytes_can_always_be_lost_with_its_process():
    assert all(RESIDENCY[state, "lost"] is Residency.DISK for state in Residency)


def test_only_models_that_callers_may_see_have_a_word():
    assert set(SHOWN) == set(Life) - {Life.ABSENT, Life.FAILED, Life.LEAVING}
    assert CALLABLE.issubset(SHOWN)


def test_the_story_keeps_only_the_last_steps():
    story = Story("cats", length=3)
    state = Residency.DISK
    for event in ["rise", "at_device", "sink", "at_disk"] * 5:
        state = next_residency(state, event, story)
    assert list(story) == ["rising --at_device--> device", "device --sink--> sinking", "sinking --at_disk--> disk"]
    assert len(story) == 3


@given(st.lists(st.sampled_from(sorted({event for _, event in LIFE})), max_size=40))
def test_any_events_end_in_a_known_state_or_are_refused_unchanged(events):
    state, story = Life.ABSENT, Story("cats", length=1000)
    for event in events:
        try:
            after = next_life(state, event, story)
        except InvalidTransition:
            assert (state, event) not in LIFE
        else:
            assert LIFE[state, event] is after
            state = after
    if len(story):
        assert list(story)[-1].endswith(f"--> {state.value}")
