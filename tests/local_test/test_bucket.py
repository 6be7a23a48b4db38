"""Archives as the platform takes them: found, named, unpacked, or refused."""

import tarfile
import threading

import pytest

from local_test.aws import Refused
from local_test.bucket import Bucket


@pytest.fixture
def bucket(tmp_path):
    (tmp_path / "prefix").mkdir()
    return Bucket(tmp_path / "prefix", tmp_path / "base")


def special(path, **fields):
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo(fields.pop("name", "x"))
        for key, value in fields.items():
            setattr(member, key, value)
        tar.addfile(member)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": tarfile.SYMTYPE, "linkname": "config.json"},
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": "../x"},
        {"type": tarfile.CHRTYPE},
        {"type": tarfile.FIFOTYPE},
        {"name": "../../outside"},
        {"name": "a/../../../outside"},
    ],
)
def test_links_devices_and_ways_out_are_refused_and_leave_nothing(bucket, tmp_path, fields):
    special(bucket.prefix / "evil.tar.gz", **fields)
    with pytest.raises(Refused, match=r"Failed to extract model data archive evil\.tar\.gz"):
        bucket.unpack(bucket.artifact("evil.tar.gz"))
    assert list((tmp_path / "base" / "models").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "prefix"]


@pytest.mark.parametrize("cut", [0, 10, 60])
def test_a_cut_off_archive_is_refused(bucket, tmp_path, cut, write_archive):
    file = bucket.prefix / "cut.tar.gz"
    write_archive(file, {"config.json": b"x" * 2000})
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(Refused, match="Failed to extract"):
        bucket.unpack(bucket.artifact("cut.tar.gz"))
    assert list((tmp_path / "base" / "models").iterdir()) == []


def test_members_with_and_without_a_leading_dot_land_in_the_same_place(bucket, write_archive):
    write_archive(
        bucket.prefix / "dots.tar.gz", {"./config.json": b"1", "code/inference.py": b"2", "./code/b.py": b"3"}
    )
    folder = bucket.unpack(bucket.artifact("dots.tar.gz"))
    found = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert found == {"config.json": b"1", "code/inference.py": b"2", "code/b.py": b"3"}


def test_what_is_unpacked_stays_and_is_not_unpacked_again(bucket, write_archive):
    write_archive(bucket.prefix / "once.tar.gz", {"config.json": b"1"})
    model = bucket.artifact("once.tar.gz")
    folder = bucket.unpack(model)
    (folder / "mark").touch()
    assert bucket.unpack(model) == folder
    assert (folder / "mark").exists()


def test_an_archive_unpacked_by_many_at_once_is_whole(bucket, tmp_path, write_archive):
    write_archive(bucket.prefix / "many.tar.gz", {f"{i}.bin": bytes(1000) for i in range(50)})
    model = bucket.artifact("many.tar.gz")
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(bucket.unpack(model))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 1 and len(folders) == 6
    assert len(list(folders[0].iterdir())) == 50
    assert [p.name for p in (tmp_path / "base" / "models").iterdir()] == [model.name]


def test_names_differ_by_key_and_by_content_and_keys_are_listed(bucket, write_archive):
    for key in ("a.tar.gz", "team/a.tar.gz"):
        write_archive(bucket.prefix / key, {"x": b"1"})
    (bucket.prefix / "notes.txt").touch()
    assert bucket.keys() == ["a.tar.gz", "team/a.tar.gz"]
    first = bucket.artifact("a.tar.gz").name
    assert first != bucket.artifact("team/a.tar.gz").name
    write_archive(bucket.prefix / "a.tar.gz", {"x": b"12345", "y": b"1"})
    assert first != bucket.artifact("a.tar.gz").name


@pytest.mark.parametrize(
    "target", ["", "/", "notes.txt", "team", "team/", "a.tar.gz/..", "../prefix/a.tar.gz", "A.tar.gz"]
)
def test_only_archives_under_the_prefix_exist(bucket, target, write_archive):
    write_archive(bucket.prefix / "a.tar.gz", {"x": b"1"})
    write_archive(bucket.prefix / "team/a.tar.gz", {"x": b"1"})
    (bucket.prefix / "notes.txt").touch()
    with pytest.raises(Refused, match="Failed to download model data"):
        bucket.artifact(target)
