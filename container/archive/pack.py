"""A folder to a .tar.gz: the same files give the same bytes, whoever packs them, whenever.

Names are sorted, times and owners zero, modes 0644 and 0755; so an archive's hash says whether a model has changed.
(Compressed at zlib's fastest level, for weights hardly shrink; another version of zlib may give other bytes.)
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from container.archive.tree import ignored
from container.errors import BadArchive, ModelMissing

Progress = Callable[[int, int], None]


class _Hashing:
    """Writes through to a file and hashes what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Hash ``data`` and write it; return the bytes written."""
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Write out what the file has buffered."""
        self._file.flush()


def pack(folder: Path, out: Path, progress: Progress | None = None) -> str:
    """Pack what is in ``folder`` (not the folder itself) into ``out`` and return its sha256 in hex.

    What editors and Python leave behind (.ipynb_checkpoints, __pycache__, .git, ...) stays out. ``out`` appears when it
    is whole. progress: called with bytes read and bytes in all.
    Raises ModelMissing, and BadArchive for links, devices, an empty folder, or ``out`` inside ``folder``.
    """
    if not folder.is_dir():
        raise ModelMissing(f"no folder {folder} to pack")
    if out.absolute().is_relative_to(folder.absolute()):
        raise BadArchive(f"{out.name} would lie inside the folder it is packed from; choose another place")
    members = list(_members(folder, folder))
    if not any(member.isreg() for _, member in members):
        raise BadArchive(f"{folder} holds no files to pack")
    total = sum(member.size for _, member in members)
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            hashing = _Hashing(file)
            _write(hashing, members, total, progress)
            os.fchmod(handle, 0o644)
        Path(name).replace(out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return hashing.sha256.hexdigest()


def _write(sink: _Hashing, members: list[tuple[Path, tarfile.TarInfo]], total: int, progress: Progress | None) -> None:
    done = 0
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=sink, compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path, member in members:
            if member.isdir():
                tar.addfile(member)
                continue
            with path.open("rb") as file:
                try:
                    tar.addfile(member, file)
                except OSError as error:
                    raise BadArchive(f"{member.name} could not be packed: {error}") from error
            done += member.size
            if progress is not None:
                progress(done, total)


def _members(top: Path, folder: Path) -> Iterator[tuple[Path, tarfile.TarInfo]]:
    for path in sorted(folder.iterdir(), key=lambda each: each.name):
        if ignored(path.name):
            continue
        status = path.lstat()
        member = tarfile.TarInfo(path.relative_to(top).as_posix())
        if stat.S_ISDIR(status.st_mode):
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            yield path, member
            yield from _members(top, path)
        elif stat.S_ISREG(status.st_mode):
            member.size, member.mode = status.st_size, 0o644
            yield path, member
        else:
            what = "a symlink; put the file itself there" if stat.S_ISLNK(status.st_mode) else "no regular file"
            raise BadArchive(f"{member.name} is {what} (SageMaker refuses archives with such members)")
