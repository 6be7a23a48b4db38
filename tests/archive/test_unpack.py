from __future__ import annotations

import bz2
import errno
import gzip
import io
import os
import struct
import tarfile
import tempfile
from pathlib import Path
from typing import IO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from container.archive import unpack as unpacking
from container.archive.unpack import unpack
from container.errors import BadArchive, ModelExists, ModelMissing, NoRoom
from tests.chaos.tars import check_contained, set_field

LIMIT = 1 << 20
Member = tuple[tarfile.TarInfo, bytes]


def file(name: str, data: bytes = b"x", mode: int = 0o644) -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    return info, data


def special(name: str, kind: bytes, target: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def tar_of(*members: Member, pax: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers=pax) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def refusal(tmp_path: Path, archive: bytes, max_bytes: int = LIMIT, max_files: int = 100) -> str:
    """Unpack both bare and gzipped: the same message, and not a trace of the attempt."""
    said = set()
    for name, data in (("a.tar", archive), ("a.tar.gz", gzip.compress(archive))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadArchive) as refused:
            unpack(tmp_path / name, tmp_path / "into" / "model", max_bytes=max_bytes, max_files=max_files)
        said.add(refused.value.message)
        assert tree(tmp_path / "into") == {}
    assert len(said) == 1
    return said.pop()


def test_files_and_folders_come_out_with_plain_modes(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("./private")
    folder.type, folder.mode = tarfile.DIRTYPE, 0o7777
    data = tar_of(
        special("./", tarfile.DIRTYPE),
        (folder, b""),
        file("./private/run", b"#!", 0o6777),
        file("deep/er/secret", b"1", 0),
        file("empty", b""),
    )
    (tmp_path / "a.tgz").write_bytes(gzip.compress(data))
    old = os.umask(0o077)
    try:
        unpack(tmp_path / "a.tgz", tmp_path / "new" / "model", max_bytes=LIMIT)
    finally:
        os.umask(old)
    out = tmp_path / "new" / "model"
    assert tree(out) == {
        "private": None,
        "private/run": b"#!",
        "deep": None,
        "deep/er": None,
        "deep/er/secret": b"1",
        "empty": b"",
    }
    assert {oct(path.stat().st_mode & 0o7777) for path in [out, *out.rglob("*")] if path.is_dir()} == {"0o755"}
    assert {oct(path.stat().st_mode & 0o7777) for path in out.rglob("*") if path.is_file()} == {"0o644"}
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def test_long_names_and_many_gzip_members_are_read(tmp_path: Path) -> None:
    name = "/".join(["d" * 60] * 5) + "/weights"
    data = tar_of(file(name, b"12"))
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            tar.addfile(file(name, b"12")[0], io.BytesIO(b"12"))
        data = out.getvalue()
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data[:700]) + gzip.compress(data[700:]))
        unpack(tmp_path / "a.tar.gz", tmp_path / str(form), max_bytes=LIMIT)
        assert (tmp_path / str(form) / name).read_bytes() == b"12"


def test_progress_counts_compressed_bytes_up_to_all(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_of(file("a", os.urandom(100_000)), file("b"))))
    seen: list[tuple[int, int]] = []
    unpack(tmp_path / "a.tar.gz", tmp_path / "m", max_bytes=LIMIT, progress=lambda *pair: seen.append(pair))
    size = (tmp_path / "a.tar.gz").stat().st_size
    assert seen == sorted(seen) and seen[-1] == (size, size) and {total for _, total in seen} == {size}


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (special("link", tarfile.SYMTYPE, "/etc/passwd"), "'link' is a symlink"),
        (special("link", tarfile.SYMTYPE, "good"), "'link' is a symlink"),
        (special("link", tarfile.LNKTYPE, "good"), "'link' is a hard link"),
        (special("dev", tarfile.CHRTYPE), "'dev' is a device"),
        (special("dev", tarfile.BLKTYPE), "'dev' is a device"),
        (special("pipe", tarfile.FIFOTYPE), "'pipe' is a fifo"),
        (special("odd", b"Q"), "'odd' is of no known type"),
        (file("/etc/evil"), "'/etc/evil' leads out of the archive"),
        (file("../evil"), "'../evil' leads out of the archive"),
        (file("a/../../evil"), "'a/../../evil' leads out of the archive"),
        (file("a/.."), "'a/..' leads out of the archive"),
        (special("..", tarfile.DIRTYPE), "'..' leads out of the archive"),
        (file("a\nb"), "holds control characters"),
        (file("x" * 300), "is too long"),
        (file("/".join("x" * 40)), "is too long"),
        (file("/".join(["y" * 200] * 6)), "is too long"),
        (file("good"), "'good' is in the archive twice"),
        (file("./good"), "'good' is in the archive twice"),
        (file("sub//./good"), "'sub/good' is in the archive twice"),
        (file("good/inside"), "'good' is both a file and a folder"),
        (special("good", tarfile.DIRTYPE), "'good' is both a file and a folder"),
        (file("sub"), "'sub' is in the archive twice"),
        (file("."), "is corrupt"),
    ],
)
def test_a_member_that_is_no_plain_file_in_the_folder_is_refused(tmp_path: Path, member: Member, said: str) -> None:
    assert said in refusal(tmp_path, tar_of(file("good"), file("sub/good"), member))


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        tar.addfile(file("caf\udce9")[0], io.BytesIO(b"x"))
    assert refusal(tmp_path, out.getvalue()) == "the name 'caf\\udce9' is not UTF-8"


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    info, data = file("holes")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 40)}
    assert refusal(tmp_path, tar_of((info, data))) == "'holes' is stored sparse; pack without --sparse"


def test_bytes_over_the_limit_are_refused_before_they_are_written(tmp_path: Path) -> None:
    said = refusal(tmp_path, tar_of(file("a", bytes(600)), file("b", bytes(401))), max_bytes=1000)
    assert said == "the archive unpacks to more than the 1000 bytes allowed"
    (tmp_path / "a.tar").write_bytes(tar_of(file("a", bytes(600)), file("b", bytes(400))))
    unpack(tmp_path / "a.tar", tmp_path / "fits", max_bytes=1000)


def test_members_over_the_limit_are_refused(tmp_path: Path) -> None:
    many = [file(f"f{number}", b"") for number in range(6)]
    assert refusal(tmp_path, tar_of(*many), max_files=5) == "the archive holds more than the 5 members allowed"
    folders = [special("same", tarfile.DIRTYPE)] * 6
    assert "more than the 5 members" in refusal(tmp_path, tar_of(*folders), max_files=5)


def gzip_of_zeros(size: int, before: bytes = b"", behind: bytes = b"") -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb") as packed:
        packed.write(before)
        for _ in range(size >> 20):
            packed.write(bytes(1 << 20))
        packed.write(behind)
    return out.getvalue()


def check_bomb(tmp_path: Path, bomb: bytes, said: str) -> None:
    (tmp_path / "bomb.tar.gz").write_bytes(bomb)
    with pytest.raises(BadArchive, match=said):
        unpack(tmp_path / "bomb.tar.gz", tmp_path / "into" / "model", max_bytes=1 << 40)
    assert tree(tmp_path / "into") == {}


def test_a_thousandfold_file_is_refused_as_a_bomb(tmp_path: Path) -> None:
    size = 80 << 20
    header = file("zeros")[0]
    header.size = size
    check_bomb(tmp_path, gzip_of_zeros(size, header.tobuf(), bytes(1024)), "that is no model but a bomb")


def test_zeros_without_end_behind_the_end_mark_are_refused(tmp_path: Path) -> None:
    check_bomb(tmp_path, gzip_of_zeros(80 << 20, tar_of(file("a"))), "follow the end of the archive")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_of_many_bytes_is_refused_before_it_is_read(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, 1 << 30
    check_bomb(tmp_path, gzip_of_zeros(4 << 20, info.tobuf(tarfile.GNU_FORMAT)), "headers of one member are over")


def test_headers_of_headers_without_end_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("more")
    info.type, info.size = tarfile.XHDTYPE, 0
    assert "corrupt" in refusal(tmp_path, info.tobuf() * 5000)


def test_a_negative_size_is_refused_and_not_read_for_ever(tmp_path: Path) -> None:
    negative = b"\xff" + struct.pack(">q", -512).rjust(11, b"\xff")
    for kind in (b"0", b"x", b"g", b"L", b"Q"):
        header = set_field(set_field(file("loop")[0].tobuf(), 156, kind), 124, negative)
        said = refusal(tmp_path, tar_of(file("a"))[:1024] + header + bytes(1024))
        assert "corrupt" in said or "of no known type" in said


@pytest.mark.parametrize("cut", [100, 511, 512, 700, 1024, 1300, 2048])
def test_an_archive_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    whole = tar_of(file("a", b"1" * 300), file("b", b"2" * 300))
    assert "truncated" in refusal(tmp_path, whole[:cut])


def test_every_cut_of_a_gzip_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(tar_of(file("a", os.urandom(300))))
    for cut in range(0, len(whole), 7):
        (tmp_path / "a.tar.gz").write_bytes(whole[:cut])
        with pytest.raises(BadArchive):
            unpack(tmp_path / "a.tar.gz", tmp_path / "into" / "model", max_bytes=LIMIT)
        assert tree(tmp_path / "into") == {}


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(tar_of(file("a", os.urandom(300)))))
    whole[-6] ^= 1
    (tmp_path / "a.tar.gz").write_bytes(whole)
    with pytest.raises(BadArchive, match="CRC check failed"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "into" / "model", max_bytes=LIMIT)


def test_a_broken_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    whole = bytearray(tar_of(file("a"), file("b"), file("c")))
    whole[1024:1536] = b"\xaa" * 512
    assert "its end mark is missing" in refusal(tmp_path, bytes(whole))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "truncated|no files"),
        (b"not an archive at all", "no .tar.gz or .tar"),
        (b"PK\x03\x04" + bytes(600), "it is a zip|is a zip, not"),
        (bz2.compress(tar_of(file("a"))), "is bzip2, not"),
        (bytes(10240), "holds no files"),
        (tar_of(special("only", tarfile.DIRTYPE)), "holds no files"),
        (gzip.compress(b"", mtime=0), "truncated|no files"),
    ],
)
def test_what_is_no_tar_is_refused_by_what_it_is(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(BadArchive, match=said):
        unpack(tmp_path / "a", tmp_path / "into" / "model", max_bytes=LIMIT)
    assert tree(tmp_path / "into") == {}


def test_a_missing_archive_is_missing_and_a_folder_is_none(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing):
        unpack(tmp_path / "nowhere", tmp_path / "into", max_bytes=LIMIT)
    with pytest.raises(BadArchive, match="is no file"):
        unpack(tmp_path, tmp_path / "into", max_bytes=LIMIT)


def test_what_is_already_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(file("a")))
    unpack(tmp_path / "a.tar", tmp_path / "into", max_bytes=LIMIT)
    (tmp_path / "into" / "a").write_bytes(b"mine")
    (tmp_path / "taken").write_bytes(b"mine")
    for place in ("into", "taken"):
        with pytest.raises(ModelExists):
            unpack(tmp_path / "a.tar", tmp_path / place, max_bytes=LIMIT)
    assert tree(tmp_path) == {"a.tar": tar_of(file("a")), "into": None, "into/a": b"mine", "taken": b"mine"}


def test_who_gives_up_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(file("a"), file("b")))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "a.tar", tmp_path / "into", max_bytes=LIMIT, progress=interrupt)
    assert list(tree(tmp_path)) == ["a.tar"]


def test_a_full_disk_is_want_of_room_and_no_broken_archive(tmp_path: Path) -> None:
    def full(source: object, member: tarfile.TarInfo, out: IO[bytes]) -> None:
        out.write(b"some of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a.tar").write_bytes(tar_of(file("a")))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(NoRoom, match="no disk space left to unpack"):
        patch.setattr(unpacking, "_copy", full)  # a small disk cannot be mounted without root
        unpack(tmp_path / "a.tar", tmp_path / "into", max_bytes=LIMIT)
    assert list(tree(tmp_path)) == ["a.tar"]


# --- fuzzing ---

names = st.sampled_from(["a", "b", "a/b", "./a", "../x", "/x", "a/../..", "..", ".", "", "a/b/c", "x" * 300, "é"])
kinds = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, b"Q", tarfile.FIFOTYPE])


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    out = io.BytesIO()
    form = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for _ in range(draw(st.integers(0, 5))):
            info = tarfile.TarInfo(draw(names))
            info.type, info.linkname = draw(kinds), draw(names)
            data = draw(st.binary(max_size=600)) if info.isreg() else b""
            info.size = len(data)
            if form == tarfile.PAX_FORMAT and draw(st.booleans()):
                keys = st.sampled_from(["size", "path", "linkpath", "GNU.sparse.major", "GNU.sparse.map", "hdrcharset"])
                info.pax_headers = draw(st.dictionaries(keys, st.sampled_from(["-1", "../y", "1,2,3", "9" * 30, "\0"])))
            try:
                tar.addfile(info, io.BytesIO(data))
            except ValueError:  # a name that this format has no room for
                continue
    body = bytearray(out.getvalue())
    for _ in range(draw(st.integers(0, 3))):
        body[draw(st.integers(0, min(len(body) - 1, 4096)))] = draw(st.integers(0, 255))
    if len(body) >= 512 and draw(st.booleans()):  # the damage is worth more behind a right checksum
        body[:512] = set_field(bytes(body[:512]), 0, b"")
    body = body[: draw(st.integers(0, len(body)))] if draw(st.booleans()) else body
    return gzip.compress(bytes(body), 1) if draw(st.booleans()) else bytes(body)


def check_one(archive: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        check_contained(archive, Path(place))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(archives())
def test_hostile_archives_never_write_outside_and_fail_in_our_words(archive: bytes) -> None:
    check_one(archive)


@settings(deadline=None)
@given(st.binary(max_size=2000).flatmap(lambda data: st.sampled_from([data, b"\x1f\x8b\x08" + data])))
def test_any_bytes_at_all_fail_in_our_words(archive: bytes) -> None:
    check_one(archive)
