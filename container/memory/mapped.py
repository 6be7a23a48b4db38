"""Weight files as they lie mapped in this process, and what becomes of one that is cut short under a running batch.

A file is one private mapping without a descriptor. While a batch reads it, somebody may truncate the file, and a page
behind its new end is then no memory any more: the kernel sends SIGBUS, and sends it again whenever the read is tried
again. ``guard`` lets that read find zeros instead: a thread of its own, woken through Python's signal descriptor, lays
anonymous memory over what has changed. The batch ends with numbers that mean nothing, and the check that follows every
batch (``weights.WeightMap.check``) throws them away.

Does not cover: reads that hold the interpreter's lock (there are none of mapped weights in this project).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch

from container import log
from container.memory import pages
from container.memory.mapping import FileMapping
from container.memory.pieces import Pieces

_log = log.get(__name__)

#: (device, inode, size, mtime in ns)
Identity = tuple[int, int, int, int]
#: Of a file that is not there.
GONE: Identity = (0, 0, 0, 0)
#: Models whose files are known to be equal to something shared.
REMEMBERED = 4096

#: The page cache is asked for a byte in so many: not fewer, as taking samples (``memory/sharing``) brings 2 MiB here
#: and there, nor more, as each lets go of the interpreter's lock.
_LOOK_BYTES = 4 << 20
#: After a file was covered, signals on their way for it may still come; one that comes later has another cause.
_LATE_S = 1.0
_QUIET_AT_MOST_S = 2.0

_all: weakref.WeakSet[MappedFile] = weakref.WeakSet()
_lock = threading.Lock()


class WeightsChanged(Exception):
    """A file under a model is not the one that was opened: close the map and load the model anew. No caller's fault."""


def identity(path: Path) -> Identity:
    """Return what tells a file from what it was; GONE if it is not there."""
    try:
        return _identity(path.stat())
    except FileNotFoundError:
        return GONE


def _identity(stat: os.stat_result) -> Identity:
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


def identities(files: Iterable[Path]) -> tuple[Identity, ...]:
    """Return what the contents of ``files`` are known by."""
    return tuple(map(identity, files))


class Verified:
    """Files that were compared with something, by the identities of a model's; the last REMEMBERED of them.

    What is shared may live for months while models that have it come and go.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, ...], None] = OrderedDict()

    def __contains__(self, identity: tuple[object, ...]) -> bool:
        return identity in self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, identity: tuple[object, ...]) -> None:
        """Remember ``identity``; what was remembered first may be forgotten, and is compared again if it comes back."""
        self._known[identity] = None
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)


def wait_until_quiet(files: Sequence[Path], quiet_s: float) -> None:
    """Return once none of ``files`` was written for ``quiet_s``, by its own time; after two seconds at the latest."""
    give_up_s = time.monotonic() + _QUIET_AT_MOST_S
    while time.monotonic() < give_up_s:
        age_s = (time.time_ns() - max(identity(path)[3] for path in files)) / 1e9
        if not 0 <= age_s < quiet_s:
            return
        time.sleep(quiet_s - age_s)


class MappedFile:
    """``holders`` lie in one mapping of ``path``, which was ``opened_as``: our own, or storages of torch.

    It does not keep them, they keep it: whoever still reads a tensor of a map that was closed is covered for. in_full:
    most of the file is going to be read.
    """

    def __init__(
        self,
        path: Path,
        opened_as: Identity,
        holders: Iterable[FileMapping | torch.UntypedStorage],
        *,
        in_full: bool = True,
    ) -> None:
        self._path = path
        self._opened_as = opened_as
        self._covered = False
        there = {holder: extent for holder in holders if (extent := _extent(holder))[1]}
        self._holders = [weakref.ref(holder) for holder in there]
        self._start = min((start for start, _ in there.values()), default=0) & -mmap.PAGESIZE
        self._size = max((start + size for start, size in there.values()), default=0) - self._start
        for holder in there:
            vars(holder)["mapped_file"] = self
        if there and in_full:  # read and mapped in pieces of 2 MiB, where the file system can: a fifth of the work
            pages.advise(self._start, self._size, mmap.MADV_HUGEPAGE)
        with _lock:
            _all.add(self)

    @property
    def laid_bytes(self) -> int:
        """What of it lies in memory of its own, read past the page cache."""
        held = self._hold()
        return held.laid_bytes if isinstance(held, FileMapping) else 0

    def read_ahead(self, part: int = 0, parts: int = 1, into: Pieces | None = None) -> None:
        """Have the file read, as fast as it comes, and mapped; a batch would fetch it piece by piece, waiting.

        part: which of ``parts`` this is, for several threads that read it together. into: memory to read it to past
        the page cache, where that can be. A part that the page cache has whole, and what cannot be read (an older
        kernel, a file that was cut), is left to whoever touches it.
        """
        held = self._hold()
        if held is None or self._covered:
            return
        todo = list(islice(self._pieces(), part, None, parts))
        with contextlib.suppress(OSError), self._path.open("rb", buffering=0) as file:
            if all(_is_cached(file.fileno(), start - self._start, size) for start, size in todo):
                return
        if into is not None and isinstance(held, FileMapping):
            with contextlib.suppress(OSError, MemoryError):
                self._read_past(held, [start for start, _ in todo], into)
            todo = [(start, size) for start, size in todo if not held.has_laid(start)]
        for start, size in todo:  # those that are cached, too: under a limit they would go before they are used
            if not pages.advise(start, size, pages.POPULATE_READ):
                return

    def _read_past(self, mapping: FileMapping, starts: list[int], into: Pieces) -> None:
        """Read pieces of the file into memory of their own. Raises OSError, MemoryError."""
        with self._opened(os.O_DIRECT) as descriptor:
            for start in starts:
                mapping.fetch(descriptor, start, into)

    def give_back(self) -> None:
        """Serve from the page cache what was read past it; the kernel can take that, where copies are to be made."""
        held = self._hold()
        if isinstance(held, FileMapping) and held.laid_bytes:
            with contextlib.suppress(OSError, MemoryError), self._opened() as descriptor:
                held.restore(descriptor)

    @contextlib.contextmanager
    def _opened(self, flags: int = 0) -> Iterator[int]:
        """Open the file that is mapped. Raises OSError, also if there is another in its place."""
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | flags)
        try:
            if _identity(os.fstat(descriptor)) != self._opened_as:
                raise OSError(f"{self._path.name} was changed")
            yield descriptor
        finally:
            os.close(descriptor)

    def cover(self) -> bool:
        """If the file was changed, put zeros where it is mapped; return whether that was done just now."""
        held = self._hold()
        if held is None or self._covered or identity(self._path) == self._opened_as:
            return False
        try:
            if isinstance(held, FileMapping):
                held.blank()
            else:
                pages.map_anonymous(self._size, at=self._start)
        except MemoryError:
            return False
        self._covered = True
        return True

    def forget_pages(self) -> None:
        """Unmap every page that was read, for nobody will read on; what reads nevertheless finds the file's bytes.

        Letting go of the last tensor would do it under the interpreter's lock: 10 ms for a BERT that all models feel.
        What lies in memory of its own is there until then; it goes in huge pages, or stays for others.
        """
        held = self._hold()
        if held is None or self._covered:
            return
        for start, size in self._pieces():
            if isinstance(held, FileMapping) and held.has_laid(start):
                continue
            # Under a limit its pages in the page cache are to go before those of models that are up, though these may
            # have been used less often: they would be read again under the next batch.
            pages.advise(start, size, pages.COLD)
            pages.advise(start, size, mmap.MADV_DONTNEED)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """Yield address and size of the mapping, a piece at a time."""
        for at in range(0, self._size, pages.PIECE_BYTES):
            yield self._start + at, min(pages.PIECE_BYTES, self._size - at)

    def _hold(self) -> FileMapping | torch.UntypedStorage | None:
        """Return what keeps the mapping where it is meanwhile; None if it is gone: others may have its addresses."""
        return next((held for holder in self._holders if (held := holder()) is not None), None)


def _extent(holder: FileMapping | torch.UntypedStorage) -> tuple[int, int]:
    """Return the address and bytes of ``holder``."""
    return (holder.start, holder.size) if isinstance(holder, FileMapping) else (holder.data_ptr(), holder.nbytes())


def _is_cached(descriptor: int, start: int, size: int) -> bool:
    """Whether the page cache has that part of a file; False where the file system does not tell."""
    places = range(start, start + size, _LOOK_BYTES)
    try:
        return all(os.preadv(descriptor, [bytearray(1)], place, os.RWF_NOWAIT) == 1 for place in places)
    except OSError:
        return False


def guard() -> None:
    """From here on this process outlives that a mapped weight file is cut; on the main thread, its loop running."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.signal(signal.SIGBUS, lambda number, frame: None)
    signal.siginterrupt(signal.SIGBUS, False)
    loops = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, writer, loops), name="mapped", daemon=True).start()


def _watch(reader: socket.socket, writer: socket.socket, loops: int) -> None:
    """Answer each SIGBUS; what is not one goes on to the event loop, whose descriptor this has taken the place of."""
    covered_s = -_LATE_S
    while numbers := reader.recv(1 << 16):
        others = numbers.replace(bytes([signal.SIGBUS]), b"")
        if others and loops >= 0:
            os.write(loops, others)
        if len(others) == len(numbers):
            continue
        with _lock:
            files = list(_all)
        if sum(file.cover() for file in files):
            covered_s = time.monotonic()
            _log.warning("a weight file was cut while it was read; what was computed from it is thrown away")
        elif time.monotonic() - covered_s > _LATE_S:
            _log.critical("SIGBUS that no changed weight file explains; ending")
            os.abort()
    writer.close()  # never reached: it keeps the other end open
