"""A folder's stamp is another one after every change that could change an answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from container.archive import tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "vocab.txt", "1_Pooling/config.json"):
        (made / name).write_text("{}")
    (made / "link.json").symlink_to("config.json")
    for path in made.rglob("*"):
        os.utime(path, (1e9, 1e9))
    return made


def write(folder: Path) -> None:
    (folder / "vocab.txt").write_text("[]")


def replace(folder: Path) -> None:
    (folder / "new").write_text("{}")
    os.utime(folder / "new", (1e9, 1e9))  # the same name, size and time: only the inode tells
    (folder / "new").rename(folder / "vocab.txt")


def deep(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").write_text("{ }")


def add(folder: Path) -> None:
    (folder / "modules.json").touch()


def add_folder(folder: Path) -> None:
    (folder / "code").mkdir()


def remove(folder: Path) -> None:
    (folder / "vocab.txt").unlink()


def rename(folder: Path) -> None:
    (folder / "vocab.txt").rename(folder / "vocab.json")


def move_up(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").rename(folder / "1_Pooling.json")


def relink(folder: Path) -> None:
    (folder / "link.json").unlink()
    (folder / "link.json").symlink_to("vocab.txt")


def touch(folder: Path) -> None:
    os.utime(folder / "config.json", (1e9 + 1, 1e9 + 1))


CHANGES = (write, replace, deep, add, add_folder, remove, rename, move_up, relink, touch)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_shows(folder: Path, change: Callable[[Path], None]) -> None:
    before = tree.stamp(str(folder))
    assert len(before) == 16
    assert tree.stamp(str(folder)) == before
    change(folder)
    assert tree.stamp(str(folder)) != before


def test_what_is_no_part_of_a_model_does_not_show(folder: Path) -> None:
    before = tree.stamp(str(folder))
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "module.pyc").touch()
    (folder / ".DS_Store").touch()
    assert tree.stamp(str(folder)) == before


@pytest.mark.parametrize(("age_ms", "tells"), [(0, False), (19, False), (21, True), (-1000, True)])
def test_what_was_written_a_moment_ago_may_be_written_again_in_the_same_tick(
    folder: Path, monkeypatch: pytest.MonkeyPatch, age_ms: int, tells: bool
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 10**18 + age_ms * 10**6)  # behind it: a clock that went wrong
    assert bool(tree.stamp(str(folder))) is tells


def test_what_cannot_be_looked_at_has_no_stamp(folder: Path) -> None:
    (folder / "lost.json").symlink_to("nowhere")
    assert tree.stamp(str(folder)) == b""
    assert tree.stamp(str(folder / "missing")) == b""
