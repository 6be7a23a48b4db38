"""The demo's part on memory, on the real server with a small embedder: what it says is true, and wrong is said."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from local_test import demo_checks, demo_memory
from local_test.processes import memory_bytes
from tests.makers import tiny_bert


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An embedder of 384 dimensions, 18 MiB of weights, as tar.gz."""
    folder = tiny_bert(tmp_path / "embedder", hidden=384, layers=4)
    with tarfile.open(tmp_path / "embedder.tar.gz", "w:gz", compresslevel=1) as tar:
        for file in folder.iterdir():
            tar.add(file, file.name)
    return tmp_path / "embedder.tar.gz"


def test_copies_lie_in_one_and_two_of_four_are_up_at_a_time(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_memory, "COPIES", 5)
    assert demo_memory.run(archive, tmp_path) == []
    said = capsys.readouterr().out
    assert said.count("  right  ") == 5
    assert "5 of 5 are up and lie in one copy" in said
    assert "12 of 12 calls answered as before" in said
    assert not (tmp_path / "memory").exists()


def test_copies_that_are_not_shared_and_answers_that_differ_are_called_wrong(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_memory, "COPIES", 4)
    monkeypatch.setattr(demo_memory, "ROUNDS", 1)
    real = demo_memory.server_environment
    monkeypatch.setattr(demo_memory, "server_environment", lambda *a, **kw: real(*a, **kw) | {"BERTH_SHARING": "off"})
    monkeypatch.setattr(demo_checks, "same_vectors", lambda one, other: one is other)
    wrong = demo_memory.run(archive, tmp_path)
    assert wrong[:2] == [
        "copies: 1 of 4 answer, and say the same",
        "copies: 0 of 4 are up and lie in one copy of the weights",
    ]
    assert wrong[-1] == "limit: 0 of 4 calls answered as before, and nobody unloaded anything"


def test_the_memory_of_a_process_that_is_not_there_is_not_told() -> None:
    assert memory_bytes(2**22 + 1) is None
