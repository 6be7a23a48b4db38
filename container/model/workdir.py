"""A working directory for one thread at a time: code that opens ``synset.txt`` means the one in its archive.

Linux lets a thread leave the working directory that its process shares (unshare(2), CLONE_FS); a change of directory is
then its own. Where the kernel is told to refuse that (docker's default seccomp profile is), the process has one
directory, and those who need theirs take turns.
Does not cover: threads that were started before, by other threads; archives that rely on none of this pay nothing.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from container import log

_log = log.get(__name__)
_CLONE_FS = 0x200
_thread = threading.local()
_turns = threading.RLock()
_told = threading.Event()


def _own() -> bool:
    """Say whether this thread's working directory is its own; make it so if that can be."""
    own: bool | None = getattr(_thread, "own", None)
    if own is None:
        own = threading.current_thread() is not threading.main_thread() and _unshare()
        _thread.own = own
    return own


def _unshare() -> bool:
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_FS) == 0:
        return True
    if not _told.is_set():
        _told.set()
        _log.info("threads share one working directory here, so archives that need theirs run in turn")
    return False


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Make ``folder`` the working directory of this thread for the block; alone in the process if it must be."""
    if _own():
        with _changed(folder):
            yield
    else:
        with _turns, _changed(folder):
            yield


@contextmanager
def _changed(folder: Path) -> Iterator[None]:
    before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(folder)
        yield
    finally:
        os.fchdir(before)
        os.close(before)
