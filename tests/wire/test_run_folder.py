"""The folder of sockets is its user's alone, whoever made something in its place before."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from container.wire.server import make_run_folder


def test_it_is_made_with_its_parents_and_shut_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "run-8080"
    make_run_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)  # as somebody made it who wanted to look in
    make_run_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="belongs to somebody else"):
        make_run_folder(tmp_path / "run")
    assert stat.S_IMODE((tmp_path / "theirs").stat().st_mode) != 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder that is another's")
def test_another_users_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.chown(tmp_path / "run", 12345, 12345)
    with pytest.raises(OSError, match="belongs to somebody else"):
        make_run_folder(tmp_path / "run")
