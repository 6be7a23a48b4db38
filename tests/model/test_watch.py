from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from container.model.watch import LENIENT_S, LOOP, SLOTS, Inside, Page, Patience


def test_what_one_process_writes_another_mapping_reads(tmp_path: Path) -> None:
    writer = Page(tmp_path / "page", create=True)
    reader = Page(tmp_path / "page")
    slot = writer.slot(SLOTS - 1, 4711)
    assert reader.inside() == []
    before = time.monotonic()
    slot.enter("predict", "m" * 256, 5.0)
    (inside,) = reader.inside()
    assert (inside.slot, inside.pid, inside.phase, inside.model) == (SLOTS - 1, 4711, "predict", "m" * 256)
    assert before + 5 <= inside.deadline_s == pytest.approx(before + 5, abs=1)
    slot.leave()
    assert reader.inside() == []


def test_patience_is_over_with_those_past_their_deadline() -> None:
    inside = [Inside(0, 1, "predict", "hangs", 99.9), Inside(1, 1, "load", "works", 160.0)]
    assert [each.model for each in Patience().over(inside, 100.0)] == ["hangs"]


def test_a_silent_loop_counts_only_where_no_code_of_its_process_is_within_its_time() -> None:
    silent, turning = Inside(0, 1, LOOP, "", 99.0), Inside(1, 2, LOOP, "", 101.0)
    working = Inside(2, 1, "predict", "slow", 140.0)
    patience = Patience()
    assert patience.over([silent, turning, working], 100.0) == []
    assert patience.over([silent, working._replace(pid=2)], 101.0) == [silent]
    assert patience.over([silent, working._replace(deadline_s=100.5)], 102.0)[0] == silent


def test_after_everything_stood_still_everybody_has_a_little_longer() -> None:
    late = Inside(0, 1, "predict", "slow", 100.0)
    patience = Patience()
    assert patience.over([], 99.0) == []
    told = [(now_s, patience.over([late], now_s)) for now_s in range(160, 168)]
    assert [now_s for now_s, over in told if over] == [165, 166, 167]
    assert LENIENT_S == 5.0


def test_a_pulse_is_nobodys_code(tmp_path: Path) -> None:
    page = Page(tmp_path / "page", create=True)

    async def scenario() -> None:
        pulse = asyncio.ensure_future(page.slot(0, 7).beat())
        await asyncio.sleep(0)
        assert [each.phase for each in page.inside()] == [LOOP]
        pulse.cancel()

    asyncio.run(scenario())
    assert page.clear(7) == []
    assert page.inside() == []


def test_clearing_a_dead_process_tells_whose_code_it_was_in_and_leaves_the_others(tmp_path: Path) -> None:
    page = Page(tmp_path / "page", create=True)
    for slot, (pid, model) in enumerate([(7, "a"), (8, "b"), (7, "c")]):
        page.slot(slot, pid).enter("predict", model, 9)
    assert [inside.model for inside in page.clear(7)] == ["a", "c"]
    assert [inside.model for inside in page.inside()] == ["b"]
