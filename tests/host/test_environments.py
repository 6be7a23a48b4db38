"""Environments of archives: one for each content, the oldest swept first."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from container.errors import LoadFailed
from container.host import venv
from tests import makers


def environment(envs: Path, name: str, size: int, used_at: int) -> Path:
    """A complete environment of ``size`` bytes that was last used at ``used_at``."""
    folder = envs / name
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(b"x" * size)
    (folder / ".complete").touch()
    os.utime(folder / ".complete", (used_at, used_at))
    return folder


def left(envs: Path) -> list[str]:
    return sorted(path.name for path in envs.iterdir())


def test_what_was_used_longest_ago_is_swept_until_the_rest_fits(tmp_path: Path) -> None:
    for name, used_at in (("old", 1), ("older", 0), ("new", 3), ("newer", 4)):
        environment(tmp_path, name, 1000, used_at)
    venv.sweep(tmp_path, 10_000, keep=tmp_path / "none")
    assert left(tmp_path) == ["new", "newer", "old", "older"]
    venv.sweep(tmp_path, 2500, keep=tmp_path / "none")
    assert left(tmp_path) == ["new", "newer"]
    venv.sweep(tmp_path, 0, keep=tmp_path / "new")
    assert left(tmp_path) == ["new"], "the one that is about to be used stays"


def test_an_environment_is_known_by_what_is_asked_for_and_by_the_wheels(tmp_path: Path) -> None:
    keys = []
    for requirements, wheel in (("a==1", b"1"), ("a==1", b"1"), ("a==2", b"1"), ("a==1", b"2"), ("a==1", None)):
        home = tmp_path / str(len(keys)) / "code"
        (home / "wheels").mkdir(parents=True)
        (home / "requirements.txt").write_text(requirements)
        if wheel is not None:
            (home / "wheels" / "a-1-py3-none-any.whl").write_bytes(wheel)
        keys.append(venv.key_of(home / "requirements.txt"))
    assert keys[0] == keys[1], "the archive's own name and place do not count"
    assert len(set(keys)) == 4


def test_what_the_requirements_name_beside_them_counts_and_is_found_there(tmp_path: Path) -> None:
    keys = []
    for number, (requirements, other) in enumerate(
        [("-r base.txt", "a==1"), ("-r base.txt", "a==2"), ("b", "a==1"), ("b", "a==2")]
    ):
        home = tmp_path / f"k{number}"
        home.mkdir()
        (home / "requirements.txt").write_text(requirements)
        (home / "base.txt").write_text(other)
        keys.append(venv.key_of(home / "requirements.txt"))
    assert keys[0] != keys[1]
    assert keys[2] == keys[3]

    code = tmp_path / "mine" / "code"
    makers.wheel(code / "wheels", "1.2")
    (code / "requirements.txt").write_text("./wheels/greeting-1.2-py3-none-any.whl\n")
    python = venv.ensure(code / "requirements.txt", tmp_path / "envs", 1 << 30)
    found = subprocess.run([python, "-c", "import greeting; print(greeting.VERSION)"], capture_output=True, check=True)
    assert found.stdout == b"1.2\n"

    (code / "requirements.txt").write_text("./wheels/missing-1.2-py3-none-any.whl\n")
    with pytest.raises(LoadFailed, match=r"'?code/wheels/missing") as failed:
        venv.ensure(code / "requirements.txt", tmp_path / "envs", 1 << 30)
    assert str(tmp_path) not in str(failed.value)
