"""The files of one model folder, walked once: names, sizes, times; reading small ones.

Nothing outside the folder is ever opened: links that lead out of it are refused, what is no regular file (a fifo would
hold the reader for ever) is not there.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from container.errors import BadArchive, ModelMissing

#: What editors, Python and macOS leave behind; no part of a model.
IGNORED = frozenset({".ipynb_checkpoints", "__pycache__", ".git", "__MACOSX", ".DS_Store"})
#: A file that was written less than this ago may be written again in the same tick of its clock.
_QUIET_NS = 20_000_000
#: More than any config or index has; a weight file named config.json is not read into memory.
MAX_TEXT_BYTES = 32 << 20
#: Endings of what is read when a model is loaded.
_READ = (".json", ".txt", ".model", ".jinja", ".safetensors", ".bin", ".pt", ".pth", ".onnx", ".ubj", ".py", ".pbtxt")


class Leaf(NamedTuple):
    """One regular file: bytes and nanoseconds."""

    size: int
    mtime_ns: int


def ignored(name: str) -> bool:
    """Say whether a file or folder of this name is no part of a model."""
    return name in IGNORED or name.startswith("._")


class Tree:
    """The regular files below ``folder``, by their relative names with ``/``."""

    def __init__(self, folder: Path, files: dict[str, Leaf]) -> None:
        self.folder = folder
        self.files = files

    @staticmethod
    def walk(folder: Path) -> Tree:
        """Return the tree of ``folder``. Raises ModelMissing, and BadArchive for what cannot be read or leads out."""
        if not folder.exists():
            raise ModelMissing(f"no folder {folder}: has the archive been unpacked there?")
        if not folder.is_dir():
            raise BadArchive(f"{folder} is a file; a model is the folder that an archive was unpacked to")
        files: dict[str, Leaf] = {}
        home = os.path.realpath(folder)
        for name in _names(home, ""):
            leaf = _look(home, name)
            if leaf is not None:
                files[name] = leaf
        return Tree(folder, files)

    def has(self, name: str) -> bool:
        """Say whether a regular file of this relative name is there."""
        return name in self.files

    def named(self, *patterns: str) -> list[str]:
        """Return the files directly in the folder that match a shell pattern, sorted."""
        return sorted(
            name for name in self.files if "/" not in name and any(fnmatch.fnmatchcase(name, one) for one in patterns)
        )

    def folders(self) -> list[str]:
        """Return the names of the visible folders directly below that hold files, sorted."""
        return sorted({name.partition("/")[0] for name in self.files if "/" in name and not name.startswith(".")})

    def entries(self) -> list[str]:
        """Return what a listing of the folder shows: files, and folders with a ``/`` behind."""
        return sorted({name.partition("/")[0] + ("/" if "/" in name else "") for name in self.files})

    def sub(self, name: str) -> Tree:
        """Return the tree of the sub-folder ``name``; "" is this one."""
        if not name:
            return self
        start = f"{name}/"
        inside = {path.removeprefix(start): leaf for path, leaf in self.files.items() if path.startswith(start)}
        return Tree(self.folder / name, inside)

    def read(self, name: str) -> bytes:
        """Return the bytes of a small file. Raises BadArchive when it is over MAX_TEXT_BYTES or unreadable."""
        if self.files[name].size > MAX_TEXT_BYTES:
            raise BadArchive(f"{name} has {self.files[name].size} bytes, too many for what it should be")
        return self.head(name, MAX_TEXT_BYTES)

    def head(self, name: str, size: int) -> bytes:
        """Return the first ``size`` bytes of a file. Raises BadArchive."""
        try:
            with (self.folder / name).open("rb") as file:
                return file.read(size)
        except OSError as error:
            raise BadArchive(f"{name} cannot be read: {error.strerror}") from error

    def identity(self) -> str:
        """Return a text that changes when a file is written, added or removed: newest mtime (ns) and total bytes."""
        newest = max((leaf.mtime_ns for leaf in self.files.values()), default=0)
        return f"{newest}-{sum(leaf.size for leaf in self.files.values())}"


def stamp(folder: str) -> bytes:
    """Return 16 bytes that are others once a file below ``folder`` is written, replaced, added or removed.

    Made of each file's device, inode, size and time, so that a thousand sunk models remember no more of their files
    than this. b"" if it cannot tell: something cannot be looked at, or was written a moment ago.
    """
    seen = hashlib.blake2b(digest_size=16)
    try:
        newest = _stamp(folder, seen.update)
    except OSError:
        return b""
    return seen.digest() if not 0 <= time.time_ns() - newest < _QUIET_NS else b""


def _stamp(folder: str, add: Callable[[bytes], None]) -> int:
    """Tell ``add`` of all that is below ``folder``; return the newest time in nanoseconds."""
    newest = 0
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if ignored(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            add(b"%s/\0" % os.fsencode(entry.name))
            newest = max(newest, _stamp(entry.path, add))
            add(b"/\0")
        else:
            at = entry.stat()
            add(b"%s\0%d %d %d %d\0" % (os.fsencode(entry.name), at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns))
            newest = max(newest, at.st_mtime_ns)
    return newest


def _names(home: str, below: str) -> Iterator[str]:
    """Yield the relative names of all that is no folder, without following links to folders."""
    try:
        with os.scandir(os.path.join(home, below)) as entries:  # noqa: PTH118 (a thousand models are walked at start)
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise BadArchive(f"{below or 'the folder'} cannot be read: {error.strerror}") from error
    for entry in found:
        if ignored(entry.name):
            continue
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _names(home, name)
        else:
            yield name


def _look(home: str, name: str) -> Leaf | None:
    path = os.path.join(home, name)  # noqa: PTH118
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            if not os.path.realpath(path).startswith(home + os.sep):
                raise BadArchive(f"{name} is a symlink that leads out of the model's folder; put the file itself there")
            status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise BadArchive(f"{name} cannot be read: {error.strerror}") from error
    if stat.S_ISREG(status.st_mode):
        return Leaf(status.st_size, status.st_mtime_ns)
    if name.endswith(_READ):  # whatever loads the model opens it by its name, and waits for ever
        raise BadArchive(f"{name} is a fifo, a socket or a device; archives may hold files and folders only")
    return None
