"""Failed loads are remembered as words: nothing of what was being loaded stays in memory with them."""

from __future__ import annotations

import gc
import traceback
import weakref

import pytest

from container.engine.failures import REMEMBER_S, Failures
from container.errors import BadArchive, LoadFailed, OutOfMemory, ServingError

KEY = ("/models/a", 1)


class HalfAModel:
    """What a failing load has in its local variables."""


def fails(failures: Failures) -> weakref.ref[HalfAModel]:
    half = HalfAModel()
    try:
        raise LoadFailed("it raises", status=422)
    except ServingError as error:
        failures.remember(KEY, error, 100.0)
    return weakref.ref(half)


def told(failures: Failures, now_s: float) -> ServingError | None:
    try:
        failures.recall(KEY, now_s)
    except ServingError as error:
        return error
    return None


def test_what_failed_is_told_again_for_a_minute_and_keeps_nothing_of_the_load_alive() -> None:
    failures = Failures()
    half = fails(failures)
    gc.collect()
    assert half() is None
    for now_s in (100.0, 100.0 + REMEMBER_S - 0.1):
        error = told(failures, now_s)
        assert isinstance(error, LoadFailed)
        assert error.to_failure() == LoadFailed("it raises", status=422).to_failure()
        assert len(traceback.extract_tb(error.__traceback__)) == 2, "the frames of this telling, not of those before it"
    assert told(failures, 100.0 + REMEMBER_S) is None
    failures.recall(("/models/a", 2), 100.0)


def test_what_may_pass_is_not_remembered_and_what_is_old_is_dropped() -> None:
    failures = Failures()
    failures.remember(KEY, OutOfMemory("no room"), 0.0)
    assert len(failures) == 0
    for number in range(5):
        failures.remember(("/models/a", number), BadArchive("no"), number * REMEMBER_S)
    assert len(failures) == 1
    with pytest.raises(BadArchive, match="no"):
        failures.recall(("/models/a", 4), 4 * REMEMBER_S + 1)
