from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container.archive.pack import pack
from container.archive.tree import ignored
from container.archive.unpack import unpack
from container.errors import BadArchive, ModelMissing


def build(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def test_the_same_files_give_the_same_bytes_whenever_and_whoever_packs_them(tmp_path: Path) -> None:
    one = build(tmp_path / "one", {"b/c": b"1", "a": b"2", "config.json": b"{}"})
    two = build(tmp_path / "two", {"config.json": b"{}", "a": b"2", "b/c": b"1"})
    (two / "a").chmod(0o777)
    os.utime(two / "a", (1, 1))
    first, second = pack(one, tmp_path / "1.tar.gz"), pack(two, tmp_path / "2.tar.gz")
    assert first == second == hashlib.sha256((tmp_path / "1.tar.gz").read_bytes()).hexdigest()
    assert (tmp_path / "1.tar.gz").read_bytes() == (tmp_path / "2.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "1.tar.gz") as tar:
        assert [(each.name, each.mode, each.uid, each.mtime) for each in tar] == [
            ("a", 0o644, 0, 0),
            ("b", 0o755, 0, 0),
            ("b/c", 0o644, 0, 0),
            ("config.json", 0o644, 0, 0),
        ]


def test_what_editors_and_python_leave_behind_stays_out(tmp_path: Path) -> None:
    folder = build(
        tmp_path / "m",
        {"a": b"1", ".git/HEAD": b"", "code/__pycache__/a.pyc": b"", ".ipynb_checkpoints/a": b"", "code/x.py": b""},
    )
    pack(folder, tmp_path / "m.tar.gz")
    with tarfile.open(tmp_path / "m.tar.gz") as tar:
        assert tar.getnames() == ["a", "code", "code/x.py"]


def test_progress_ends_at_the_bytes_in_all(tmp_path: Path) -> None:
    folder = build(tmp_path / "m", {"a": b"123", "b": b"45"})
    seen: list[tuple[int, int]] = []
    pack(folder, tmp_path / "m.tar.gz", lambda done, total: seen.append((done, total)))
    assert seen == [(3, 5), (5, 5)]


def test_links_and_fifos_are_refused_and_leave_no_archive(tmp_path: Path) -> None:
    folder = build(tmp_path / "m", {"a": b"1"})
    (folder / "link").symlink_to("a")
    with pytest.raises(BadArchive, match="link is a symlink; put the file itself there"):
        pack(folder, tmp_path / "m.tar.gz")
    (folder / "link").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(BadArchive, match="pipe is no regular file"):
        pack(folder, tmp_path / "m.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_nothing_and_nowhere_cannot_be_packed(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing):
        pack(tmp_path / "nowhere", tmp_path / "m.tar.gz")
    (tmp_path / "m" / "empty").mkdir(parents=True)
    with pytest.raises(BadArchive, match="holds no files"):
        pack(tmp_path / "m", tmp_path / "m.tar.gz")
    with pytest.raises(BadArchive, match="inside the folder"):
        pack(tmp_path / "m", tmp_path / "m" / "m.tar.gz")


def test_a_failure_in_the_middle_keeps_the_older_archive(tmp_path: Path) -> None:
    folder = build(tmp_path / "m", {"a": b"1"})
    pack(folder, tmp_path / "m.tar.gz")
    before = (tmp_path / "m.tar.gz").read_bytes()

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(folder, tmp_path / "m.tar.gz", interrupt)
    assert (tmp_path / "m.tar.gz").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "m.tar.gz"]


part = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1, max_size=60
)
part = part.filter(lambda name: name not in (".", "..") and not ignored(name) and len(name.encode()) < 200)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.lists(part, min_size=1, max_size=4).map(tuple), st.binary(max_size=2000), min_size=1, max_size=6)
)
def test_what_is_packed_comes_out_as_it_was(files: dict[tuple[str, ...], bytes]) -> None:
    folders = {name[:depth] for name in files for depth in range(1, len(name))}
    kept = {"/".join(name): data for name, data in files.items() if name not in folders}
    with tempfile.TemporaryDirectory() as place:
        folder = build(Path(place) / "m", kept)
        pack(folder, Path(place) / "m.tar.gz")
        unpack(Path(place) / "m.tar.gz", Path(place) / "out", max_bytes=1 << 20)
        assert tree(Path(place) / "out") == tree(folder)
        Path(place, "m.tar").write_bytes(gzip.decompress(Path(place, "m.tar.gz").read_bytes()))
        unpack(Path(place) / "m.tar", Path(place) / "again", max_bytes=1 << 20)
        assert tree(Path(place) / "again") == tree(folder)
