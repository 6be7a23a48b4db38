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
import ctypes
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

_log = log.get(__name__)

#: (device, inode, size, mtime in ns)
Identity = tuple[int, int, int, int]
#: Of a file that is not there.
GONE: Identity = (0, 0, 0, 0)
#: Models whose files are known to be equal to something shared.
REMEMBERED = 4096

_MAP_FIXED = 0x10
#: Since Linux 5.4 and 5.14; not in Python's mmap.
_MADV_COLD, _MADV_POPULATE_READ = 20, 22
#: What is asked for at a time: the kernel holds the process's memory map meanwhile, and others may want to change it.
_PIECE_BYTES = 8 << 20
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
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
        stat = path.stat()
    except FileNotFoundError:
        return GONE
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
    """``storages`` lie in one mapping of ``path``, which was ``opened_as``.

    It does not keep them, they keep it: whoever still reads a tensor of a map that was closed is covered for. in_full:
    most of the file is going to be read.
    """

    def __init__(
        self, path: Path, opened_as: Identity, storages: Iterable[torch.UntypedStorage], *, in_full: bool = True
    ) -> None:
        self._path = path
        self._opened_as = opened_as
        self._covered = False
        there = [storage for storage in storages if storage.nbytes()]
        self._storages = [weakref.ref(storage) for storage in there]
        self._start = min((storage.data_ptr() for storage in there), default=0) & -mmap.PAGESIZE
        self._size = max((storage.data_ptr() + storage.nbytes() for storage in there), default=0) - self._start
        for storage in there:
            vars(storage)["mapped_file"] = self
        if there and in_full:  # read and mapped in pieces of 2 MiB, where the file system can: a fifth of the work
            _libc.madvise(self._start, self._size, mmap.MADV_HUGEPAGE)
        with _lock:
            _all.add(self)

    def read_ahead(self, part: int = 0, parts: int = 1) -> None:
        """Have the file read, as fast as it comes, and mapped; a batch would fetch it piece by piece, waiting.

        part: which of ``parts`` this is, for several threads that read it together. A part that the page cache has
        whole, and what cannot be read (an older kernel, a file that was cut), is left to whoever touches it.
        """
        held = self._hold()
        if held is None or self._covered:
            return
        with contextlib.suppress(OSError), self._path.open("rb", buffering=0) as file:
            pieces = list(islice(self._pieces(), part, None, parts))
            ends = (start - self._start + at for start, size in pieces for at in (0, size - 1))
            if all(_is_cached(file.fileno(), end) for end in ends):
                return
            for start, size in pieces:  # those that are cached, too: under a limit they would go before they are used
                if _libc.madvise(start, size, _MADV_POPULATE_READ):
                    return

    def cover(self) -> bool:
        """If the file was changed, put zeros where it is mapped; return whether that was done just now."""
        held = self._hold()
        if held is None or self._covered or identity(self._path) == self._opened_as:
            return False
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
        covered = _libc.mmap(self._start, self._size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        self._covered = covered == self._start
        return self._covered

    def forget_pages(self) -> None:
        """Unmap every page that was read, for nobody will read on; what reads nevertheless finds the file's bytes.

        Letting go of the last tensor would do it under the interpreter's lock: 10 ms for a BERT that all models feel.
        """
        held = self._hold()
        if held is not None and not self._covered:
            # Under a limit its pages in the page cache are to go before those of models that are up, though these may
            # have been used less often: they would be read again under the next batch.
            for start, size in self._pieces():
                _libc.madvise(start, size, _MADV_COLD)
                _libc.madvise(start, size, mmap.MADV_DONTNEED)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """Yield address and size of the mapping, a piece at a time."""
        for at in range(0, self._size, _PIECE_BYTES):
            yield self._start + at, min(_PIECE_BYTES, self._size - at)

    def _hold(self) -> torch.UntypedStorage | None:
        """Return what keeps the mapping where it is meanwhile; None if it is gone: others may have its addresses."""
        return next((held for storage in self._storages if (held := storage()) is not None), None)


def _is_cached(descriptor: int, offset: int) -> bool:
    """Whether the page cache has the byte at ``offset``; False where the file system does not tell."""
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
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
