"""A .tar.gz or .tar from strangers to a folder: nothing outside it, nothing half there, nothing without a limit.

Python's ``tarfile`` reads the headers; every name, type and size is checked here before a byte is written, and
the files are written here, into a fresh folder beside the target that is renamed when all is well. ``tarfile``'s own
extraction with its ``data`` filter is not used: it follows links it has made, allows them inside the folder, and
counts nothing.
"""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from container.errors import BadArchive, ModelExists, ModelMissing, NoRoom

Progress = Callable[[int, int], None]

#: A ratio no weights reach; zeros, and bombs, do (deflate ends at 1032). Judged once enough has come out.
MAX_RATIO = 200
RATIO_FROM_BYTES = 64 << 20
MAX_NAME_BYTES = 1024
MAX_DEPTH = 32
_CHUNK = 1 << 20
#: Headers before one member (long names, pax records): tarfile reads these into memory.
_HEADER_BYTES = 1 << 20
#: Headers and padding of all members together, each, on top of the bytes of files.
_OVERHEAD_BYTES = 4096
#: What may follow the end mark: tar pads to its blocking factor.
_TAIL_BYTES = 16 << 20

#: What gzip raises for bytes that are not what they claim.
_BROKEN_STREAM = (gzip.BadGzipFile, zlib.error, EOFError)
#: What tarfile raises for headers that are not what they claim, odd numbers and texts in them included.
_BROKEN_HEADER = (tarfile.TarError, struct.error, ValueError, LookupError, OverflowError, RecursionError)


class _Source:
    """The decompressed bytes, forwards only, with a limit on everything that is read.

    tarfile takes it for a file. ``quota`` is what may be read until it is set anew, so that no header makes tarfile
    hold more; a seek backwards (a negative size in a header) is refused instead of read again for ever.
    """

    def __init__(self, archive: IO[bytes], max_bytes: int, progress: Progress | None) -> None:
        self._archive = archive
        self._size = os.fstat(archive.fileno()).st_size
        packed = archive.read(2) == b"\x1f\x8b"
        archive.seek(0)
        self._stream: IO[bytes] = gzip.GzipFile(fileobj=archive, mode="rb") if packed else archive  # type: ignore[assignment]
        self._max_bytes = max_bytes
        self._progress = progress
        self._at = 0
        self.quota = _HEADER_BYTES
        self.last = b""

    def tell(self) -> int:
        """Return how many decompressed bytes have been read."""
        return self._at

    def seek(self, to: int) -> int:
        """Read on to decompressed byte ``to``. Raises BadArchive if that lies behind, or after the end."""
        if to < self._at:
            raise BadArchive("the archive is corrupt: a header points backwards")
        while self._at < to:
            if not self.read(min(_CHUNK, to - self._at)):
                raise BadArchive("the archive is truncated")
        return to

    def read(self, size: int) -> bytes:
        """Return ``size`` decompressed bytes, less only at the end. Raises BadArchive: broken, or over a limit."""
        if not 0 <= size <= self.quota:
            raise BadArchive(f"the archive is corrupt: headers of one member are over {_HEADER_BYTES} bytes")
        data = b""
        while len(data) < size:  # GzipFile may give less than it is asked for
            try:
                piece = self._stream.read(size - len(data))
            except _BROKEN_STREAM as error:
                raise BadArchive(f"the archive is truncated or corrupt: {error}; copy it anew or pack again") from error
            if not piece:
                break
            data += piece
        self.quota -= len(data)
        self._at += len(data)
        self.last = data
        self._judge()
        return data

    def _judge(self) -> None:
        came = max(1, self._archive.tell())
        if self._at > self._max_bytes:
            raise BadArchive(f"the archive unpacks to more than the {self._max_bytes} bytes allowed")
        if self._at > RATIO_FROM_BYTES and self._at > MAX_RATIO * came:
            raise BadArchive(f"the archive shrank to under 1/{MAX_RATIO} of its contents: that is no model but a bomb")
        if self._progress is not None:
            self._progress(min(came, self._size), self._size)

    def finish(self) -> None:
        """Read what follows the end mark, so that gzip compares its checksum. Raises BadArchive."""
        for _ in range(_TAIL_BYTES // _CHUNK):
            self.quota = _CHUNK
            if not self.read(_CHUNK):
                return
        raise BadArchive(f"over {_TAIL_BYTES} bytes follow the end of the archive")


def unpack(
    archive: Path, into: Path, *, max_bytes: int, max_files: int = 100_000, progress: Progress | None = None
) -> None:
    """Unpack ``archive`` (.tar.gz or .tar) as the new folder ``into``: files 0644, folders 0755, times of now.

    max_bytes: of all files together. max_files: of members. progress: called with compressed bytes read and in all.
    Raises ModelMissing, ModelExists (``into`` holds something), NoRoom (disk full), and BadArchive for links, devices,
    names that lead out, limits, and what is truncated or corrupt. ``into`` is then as before. A folder
    ``.NAME.XXXX`` beside it is left over only if the process was killed.
    """
    if not archive.exists():
        raise ModelMissing(f"no archive {archive}")
    if not archive.is_file():
        raise BadArchive(f"{archive} is no file")
    into.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{into.name}.", dir=into.parent))
    try:
        with archive.open("rb") as file:
            _refuse_others(file)
            source = _Source(file, max_bytes + max_files * _OVERHEAD_BYTES + _TAIL_BYTES, progress)
            _extract(source, fresh, max_bytes, max_files)
        fresh.chmod(0o755)
        fresh.rename(into)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoom(f"no disk space left to unpack {archive.name}") from error
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise ModelExists(f"{into} is already there") from error
        raise BadArchive(f"{archive.name} cannot be unpacked: {error.strerror}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _extract(source: _Source, folder: Path, max_bytes: int, max_files: int) -> None:
    seen: dict[str, bool] = {}  # relative name -> is it a folder
    total = 0
    for count, member in enumerate(_members(source), start=1):
        if count > max_files:
            raise BadArchive(f"the archive holds more than the {max_files} members allowed")
        name = _checked(member)
        total += member.size if member.isreg() else 0
        if total > max_bytes:
            raise BadArchive(f"the archive unpacks to more than the {max_bytes} bytes allowed")
        if name:
            _make(source, folder, member, name, seen)
    if not any(not is_folder for is_folder in seen.values()):
        raise BadArchive("the archive holds no files; pack what is in the folder: tar -czf model.tar.gz -C FOLDER .")
    # tarfile takes a broken header in the middle for the end; only the end mark is one.
    if len(source.last) != tarfile.BLOCKSIZE or source.last.strip(b"\0"):
        raise BadArchive("the archive is truncated or corrupt: its end mark is missing")
    source.finish()


def _members(source: _Source) -> Iterator[tarfile.TarInfo]:
    tar: tarfile.TarFile | None = None
    while True:
        source.quota = _HEADER_BYTES
        try:
            tar = tar or tarfile.TarFile(fileobj=source, mode="r")  # type: ignore[arg-type]
            member = tar.next()
        except _BROKEN_HEADER as error:
            raise BadArchive(f"the archive is truncated or corrupt, or no .tar.gz or .tar: {error}") from error
        if member is None:
            return
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep all it has seen
        yield member


def _checked(member: tarfile.TarInfo) -> str:
    """Return the member's relative name, "" for the top itself. Raises BadArchive for all that is not wanted."""
    _check_kind(member)
    shown = ascii(member.name[:100])
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    try:
        length = len(member.name.encode())
    except UnicodeEncodeError as error:
        raise BadArchive(f"the name {shown} is not UTF-8") from error
    if member.name.startswith("/") or ".." in parts:
        raise BadArchive(f"the name {shown} leads out of the archive; pack with tar -C FOLDER . (names begin there)")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in member.name):
        raise BadArchive(f"the name {shown} holds control characters")
    if length > MAX_NAME_BYTES or len(parts) > MAX_DEPTH or any(len(part.encode()) > 255 for part in parts):
        raise BadArchive(f"the name {shown} is too long: {MAX_NAME_BYTES} bytes, {MAX_DEPTH} folders, 255 bytes each")
    if member.size < 0 or (not parts and not member.isdir()):
        raise BadArchive(f"the archive is corrupt: member {shown}")
    return "/".join(parts)


def _check_kind(member: tarfile.TarInfo) -> None:
    """Raise BadArchive unless ``member`` is a plain file or a folder."""
    shown = ascii(member.name[:100])
    if member.issym() or member.islnk():
        kind = "symlink" if member.issym() else "hard link"
        raise BadArchive(f"{shown} is a {kind}; archives may hold none, pack the file itself (tar --dereference)")
    if member.issparse():
        raise BadArchive(f"{shown} is stored sparse; pack without --sparse")
    if not (member.isdir() or member.isreg()):
        what = "a device" if member.ischr() or member.isblk() else "a fifo" if member.isfifo() else "of no known type"
        raise BadArchive(f"{shown} is {what}; archives may hold files and folders only")


def _make(source: _Source, folder: Path, member: tarfile.TarInfo, name: str, seen: dict[str, bool]) -> None:
    parts = name.split("/")
    for depth in range(1, len(parts) + member.isdir()):
        parent = "/".join(parts[:depth])
        if parent not in seen:
            (folder / parent).mkdir()
            (folder / parent).chmod(0o755)
        elif not seen[parent]:
            raise BadArchive(f"{parent[:100]!a} is both a file and a folder")
        seen[parent] = True
    if member.isdir():
        return
    if name in seen:
        raise BadArchive(f"{name[:100]!a} is in the archive twice")
    seen[name] = False
    handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        _copy(source, member, file)
        os.fchmod(handle, 0o644)


def _copy(source: _Source, member: tarfile.TarInfo, file: IO[bytes]) -> None:
    source.quota = member.size + tarfile.BLOCKSIZE
    source.seek(member.offset_data)
    left = member.size
    while left:
        data = source.read(min(_CHUNK, left))
        if not data:
            raise BadArchive(f"the archive is truncated in {member.name[:100]!a}")
        file.write(data)
        left -= len(data)


def _refuse_others(file: IO[bytes]) -> None:
    """Raise BadArchive for what people take for a .tar.gz, by its first bytes."""
    start = file.read(512)
    file.seek(0)
    if start and b"\0" not in start and start.isascii():
        shown = ascii(start[:40].decode())
        raise BadArchive(f"the archive is text, no .tar.gz or .tar; it begins {shown}: has a download been refused?")
    for mark, name in ((b"PK", "a zip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"(\xb5/\xfd", "zstandard")):
        if start.startswith(mark):
            raise BadArchive(f"the archive is {name}, not .tar.gz or .tar; pack with tar -czf")
