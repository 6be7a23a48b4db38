from __future__ import annotations

import time
from pathlib import Path

import pytest

from container.model.watch import SLOTS, Page


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


def test_only_those_past_their_deadline_are_late(tmp_path: Path) -> None:
    page = Page(tmp_path / "page", create=True)
    page.slot(0, 1).enter("predict", "hangs", -0.001)
    page.slot(1, 1).enter("load", "works", 60)
    assert [inside.model for inside in page.late(time.monotonic())] == ["hangs"]


def test_clearing_a_dead_process_tells_whose_code_it_was_in_and_leaves_the_others(tmp_path: Path) -> None:
    page = Page(tmp_path / "page", create=True)
    for slot, (pid, model) in enumerate([(7, "a"), (8, "b"), (7, "c")]):
        page.slot(slot, pid).enter("predict", model, 9)
    assert [inside.model for inside in page.clear(7)] == ["a", "c"]
    assert [inside.model for inside in page.inside()] == ["b"]
