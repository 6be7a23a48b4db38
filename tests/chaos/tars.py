"""Fuzzed tars: names that climb, links, devices, headers that lie, damage behind a right checksum, cut short.

Whatever comes, an archive is unpacked whole inside its folder and its limits, or refused in our words leaving nothing.
"""

from __future__ import annotations

import gzip
import io
import random
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

from container.archive.unpack import unpack
from container.errors import ServingError

COUNT = 10_000
#: Where ten thousand small files cost no disk.
IN_RAM = "/dev/shm" if Path("/dev/shm").is_dir() else None
MAX_BYTES, MAX_FILES = 4096, 4
NAMES = ["a", "b", "a/b", "./a", "../x", "/x", "a/../..", "..", ".", "", "a/b/c", "x" * 300, "é", "日本/語", "a\n", "-"]
NAMES += ["a\\..\\b", "con", "a/b/../../../c", "e\u0301", "\u202etxt.exe", "\x1b[2J", "a/" * 40 + "b", "~/x", "$HOME"]
KINDS = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
KINDS += [tarfile.BLKTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"Q"]
PAX = ["size", "path", "linkpath", "GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.name", "hdrcharset"]
VALUES = ["-1", "../y", "1,2,3", "9" * 30, "\0", "/etc/x", "0"]


def set_field(header: bytes, at: int, value: bytes) -> bytes:
    """Return ``header`` with a field replaced and its checksum right."""
    block = bytearray(header)
    block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def make(dice: random.Random) -> bytes:
    """Return one archive."""
    out = io.BytesIO()
    form = dice.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for _ in range(dice.choice([0, 1, 1, 2, 3, 5, 9])):
            info = tarfile.TarInfo(dice.choice(NAMES[:3] if dice.random() < 0.6 else NAMES))
            info.type = tarfile.REGTYPE if dice.random() < 0.7 else dice.choice(KINDS)
            info.linkname = dice.choice(NAMES)
            data = dice.randbytes(dice.choice([0, 1, 100, 513, 3000])) if info.isreg() else b""
            info.size = len(data)
            if form == tarfile.PAX_FORMAT and dice.random() < 0.3:
                info.pax_headers = {dice.choice(PAX): dice.choice(VALUES)}
            try:
                tar.addfile(info, io.BytesIO(data))
            except ValueError:  # a name that this format has no room for
                continue
    body = out.getvalue()
    if dice.random() < 0.4:  # a byte of some header, its checksum right again
        at = 512 * dice.randrange(max(1, min(len(body), 4096) // 512))
        changed = set_field(body[at : at + 512], dice.randrange(500), dice.randbytes(dice.choice([1, 2, 8])))
        body = body[:at] + changed + body[at + 512 :]
    if dice.random() < 0.2:
        body = body[: dice.randrange(len(body) + 1)]
    if dice.random() < 0.3:
        body = gzip.compress(body, 1)
        if dice.random() < 0.3:
            at = dice.randrange(len(body))
            body = body[:at] + dice.randbytes(1) + body[at + 1 :]
    return body


def check_contained(archive: bytes, place: Path) -> bool:
    """Unpack ``archive`` in the empty folder ``place``; return whether it was taken. Raises AssertionError."""
    inside = place / "in"
    inside.mkdir()
    (place / "a.tar").write_bytes(archive)
    try:
        unpack(place / "a.tar", inside / "model", max_bytes=MAX_BYTES, max_files=MAX_FILES)
    except ServingError as refused:
        assert refused.message, "refused without a word"
        assert list(inside.rglob("*")) == [], "a refused archive left something"
        taken = False
    else:
        found = list((inside / "model").rglob("*"))
        assert any(path.is_file() for path in found), "nothing was unpacked"
        assert not any(path.is_symlink() for path in found), "a link was unpacked"
        assert sum(path.stat().st_size for path in found if path.is_file()) <= MAX_BYTES, "the limit was passed"
        assert [path.name for path in inside.iterdir()] == ["model"], "something lies beside the model"
        taken = True
    assert sorted(path.name for path in place.iterdir()) == ["a.tar", "in"], "something was written outside"
    assert (place / "a.tar").read_bytes() == archive, "the archive itself was changed"
    return taken


def report(count: int = COUNT, seed: int = 1) -> tuple[list[str], str]:
    """Unpack ``count`` archives; return what was wrong, and the count in words."""
    dice = random.Random(seed)
    outcomes: Counter[bool] = Counter()
    wrong: list[str] = []
    for number in range(count):
        archive = make(dice)
        with tempfile.TemporaryDirectory(dir=IN_RAM) as place:
            try:
                outcomes[check_contained(archive, Path(place))] += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
                wrong.append(f"tar {number} of seed {seed}: {type(error).__name__}: {error}")
    return wrong, f"{count:,} tars: {outcomes[True]:,} unpacked, {outcomes[False]:,} refused, {len(wrong)} wrong"


if __name__ == "__main__":
    found, text = report()
    print("\n".join([*found[:20], text]))
    sys.exit(bool(found))
