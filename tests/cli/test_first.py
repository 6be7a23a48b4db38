"""What a server is started with, decided from the folder of `--models` without a server."""

from __future__ import annotations

import logging
import os
import tarfile
from pathlib import Path

import pytest

from container.cli import first
from container.settings import BadSetting, Settings


def settings(tmp_path: Path, **environ: str) -> Settings:
    return Settings.read(
        {
            "SAGEMAKER_BASE_DIR": str(tmp_path / "ml"),
            "BERTH_STATE_DIR": str(tmp_path / "state"),
            "BERTH_MODELS": str(tmp_path / "shelf"),
            **environ,
        }
    )


def pack(archive: Path, content: str = "x") -> Path:
    (archive.parent.parent / "config.json").write_text(content)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(archive.parent.parent / "config.json", arcname="config.json")
    return archive


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    (tmp_path / "shelf").mkdir()
    return tmp_path / "shelf"


def unpacked(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "state" / "unpacked").iterdir() if path.is_dir()}


def test_two_files_with_one_name_are_never_served_in_place_of_each_other(
    shelf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (shelf / "cats").mkdir()
    for name in ("cats.tar.gz", "a b.tar.gz", "a-b.tar.gz"):
        pack(shelf / name)
    assert [(each.name, each.origin or each.url) for each in first.models(settings(tmp_path))] == [
        ("a-b", str(shelf / "a b.tar.gz")),
        ("cats", str(shelf / "cats")),
    ]
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == [
        f"{shelf}/a-b.tar.gz is not loaded: its name would be a-b, as that of {shelf}/a b.tar.gz is; rename one",
        f"{shelf}/cats.tar.gz is not loaded: its name would be cats, as that of {shelf}/cats is; rename one",
    ]


def test_names_that_are_no_text_cost_no_other_model(
    shelf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack(shelf / "odd.tar.gz").rename(shelf / os.fsdecode(b"odd\xff.tar.gz"))
    (shelf / os.fsdecode(b"folder\xff")).mkdir()
    (shelf / "plain").mkdir()
    found = first.models(settings(tmp_path))
    assert [(each.name, each.origin) for each in found] == [("odd-", f"{shelf}/odd\\xff.tar.gz"), ("plain", "")]
    assert "folder-" in caplog.text


def test_what_is_no_model_is_told_and_what_is_hidden_is_not(
    shelf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("README.md", "model.zip", "._cats.tar.gz", ".DS_Store"):
        (shelf / name).touch()
    os.mkfifo(shelf / "pipe.tar.gz")
    (shelf / "dangling.tar.gz").symlink_to("/nowhere")
    assert first.models(settings(tmp_path)) == []
    for name in ("README.md", "model.zip", "pipe.tar.gz", "dangling.tar.gz"):
        assert name in caplog.text
    assert "._cats" not in caplog.text
    assert "DS_Store" not in caplog.text


def test_a_file_in_place_of_the_folder_is_refused_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / "shelf").touch()
    with pytest.raises(BadSetting, match="name the folder that it lies in"):
        first.models(settings(tmp_path))


def test_what_is_not_served_any_more_leaves_the_state_folder_unless_another_server_is_there(
    shelf: Path, tmp_path: Path
) -> None:
    one, two = pack(shelf / "one.tar.gz"), pack(shelf / "two.tar.gz", "y")
    (old,) = [each.url for each in first.models(settings(tmp_path)) if each.name == "one"]
    (tmp_path / "state" / "unpacked" / ".half.unpacked").mkdir()
    two.unlink()
    pack(one, "longer than before")
    # This process holds the lock of a server that runs, and never lets go of it.
    (new,) = first.models(settings(tmp_path))
    assert {Path(old).name, Path(new.url).name, ".half.unpacked"} < unpacked(tmp_path)

    (tmp_path / "state" / "unpacked" / ".lock").unlink()  # as if that server had ended
    assert first.models(settings(tmp_path)) == [new]
    assert unpacked(tmp_path) == {Path(new.url).name}
