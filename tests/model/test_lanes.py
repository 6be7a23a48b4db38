"""Work that can wait and the lanes: who goes first, and for how long."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

from container.engine import background
from container.model.lanes import LULL_S, Job, Lanes

FOREVER_S = 20.0


class Held:
    """A job that computes until it is told to end."""

    def __init__(self, expected_s: float) -> None:
        self.go = threading.Event()
        self.job = Job("held", self._steps(), 1, lambda results: None, lambda busy_s: None)
        self.job.expected_s = expected_s

    def _steps(self) -> Iterator[list[tuple[int, object]] | None]:
        self.go.wait(FOREVER_S)
        yield [(0, None)]


def waiting(lanes: Lanes) -> asyncio.Future[None]:
    return asyncio.get_running_loop().run_in_executor(None, lanes.await_lull)


def test_what_can_wait_begins_at_once_when_no_lane_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container.model.lanes.LULL_S", FOREVER_S)

    async def main() -> None:
        lanes, held = Lanes(2), Held(expected_s=FOREVER_S)
        held.go.set()
        lanes.start(held.job)
        while lanes.busy:
            await asyncio.sleep(0.001)
        begun = waiting(lanes)
        await asyncio.wait_for(begun, FOREVER_S / 2)
        assert begun.done() and lanes.busy == 0
        lanes.close()

    asyncio.run(main())


def test_what_can_wait_begins_when_the_running_batch_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container.model.lanes.LULL_S", FOREVER_S)

    async def main() -> None:
        lanes, held = Lanes(2), Held(expected_s=FOREVER_S)
        lanes.start(held.job)
        begun = waiting(lanes)
        await asyncio.sleep(0.05)
        assert not begun.done()
        held.go.set()
        await asyncio.wait_for(begun, FOREVER_S / 2)
        assert lanes.busy == 0
        lanes.close()

    asyncio.run(main())


@pytest.mark.parametrize("expected_s", [0.001, float("inf")])
def test_what_can_wait_waits_no_longer_than_the_batch_was_expected_to_take(expected_s: float) -> None:
    """Nor ever longer than LULL_S: a server that computes all the time loads models, too."""
    assert LULL_S < FOREVER_S / 10

    async def main() -> None:
        lanes, held = Lanes(2), Held(expected_s)
        lanes.start(held.job)
        await asyncio.wait_for(waiting(lanes), FOREVER_S / 2)
        assert lanes.busy == 1
        held.go.set()
        lanes.close()

    asyncio.run(main())


def test_threads_for_work_that_can_wait_step_back_and_no_others_do() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    with background.threads(1, "loader") as threads:
        assert threads.submit(niceness).result() == min(19, before + background.NICE)
    assert niceness() == before
