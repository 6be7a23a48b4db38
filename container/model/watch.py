"""Who is inside a model's code right now, and until when: a page of memory that the supervisor can read.

Before a lane enters a handler it writes (pid, phase, model, deadline) into its slot, and clears the deadline when it is
out. A process that hangs, even one that holds the interpreter's lock, cannot hide what it hangs in; one that dies
leaves behind whose code it died in. Writing costs about a microsecond and takes no lock: a slot has one writer, and the
deadline is written last and cleared first.
"""

from __future__ import annotations

import mmap
import struct
import time
from pathlib import Path
from typing import NamedTuple

_SLOT = struct.Struct("<I20s256s")
_DEADLINE = struct.Struct("<d")
_STRIDE = 288
SLOTS = 4096
#: The engine's slots come first; then those of its children, a block each: two lanes, the event loop, the loader.
ENGINE_SLOTS = 8
BLOCK = 4
#: Deaths inside a model's code that are forgiven.
FORGIVEN = 1


class Inside(NamedTuple):
    """One process inside one model's code; ``deadline_s`` of CLOCK_MONOTONIC."""

    slot: int
    pid: int
    phase: str
    model: str
    deadline_s: float


def verdict(inside: Inside, deaths: int, how: str, now_s: float) -> str:
    """Return why the model whose code a process died in must be kept out, "" if it may stay.

    deaths: of this model, this one included. how: the process ended, in words.
    """
    if inside.deadline_s < now_s:
        return "its code did not come back in time and its process had to be killed"
    if deaths > FORGIVEN:
        return f"its process died {deaths} times inside its code, the last time {how}"
    return ""


class Page:
    """The page of one server, as any of its processes maps it."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        with path.open("w+b" if create else "r+b") as file:
            if create:
                path.chmod(0o600)
                file.truncate(SLOTS * _STRIDE)
            self._memory = mmap.mmap(file.fileno(), SLOTS * _STRIDE)

    def slot(self, index: int, pid: int) -> Slot:
        """Return the writer of slot ``index``."""
        return Slot(self._memory, index * _STRIDE, pid)

    def inside(self) -> list[Inside]:
        """Return everyone who is inside a model's code now."""
        found = []
        deadlines = memoryview(self._memory).cast("d")[:: _STRIDE // _DEADLINE.size].tolist()
        for index, deadline_s in enumerate(deadlines):
            if deadline_s:
                pid, phase, model = _SLOT.unpack_from(self._memory, index * _STRIDE + _DEADLINE.size)
                found.append(Inside(index, pid, _text(phase), _text(model), deadline_s))
        return found

    def late(self, now_s: float) -> list[Inside]:
        """Return those whose deadline has passed."""
        return [inside for inside in self.inside() if inside.deadline_s < now_s]

    def clear(self, pid: int) -> list[Inside]:
        """Empty the slots of a process that is dead; return whose code it was in."""
        was = [inside for inside in self.inside() if inside.pid == pid]
        for inside in was:
            _DEADLINE.pack_into(self._memory, inside.slot * _STRIDE, 0.0)
        return was

    def clear_all(self) -> None:
        """Empty every slot: everyone who wrote on the page is dead."""
        for inside in self.inside():
            _DEADLINE.pack_into(self._memory, inside.slot * _STRIDE, 0.0)


class Slot:
    """One writer's place on the page."""

    def __init__(self, memory: mmap.mmap, at: int, pid: int) -> None:
        self._memory = memory
        self._at = at
        self._pid = pid

    def enter(self, phase: str, model: str, allowed_s: float) -> None:
        """Note that this thread is about to be inside ``model`` for at most ``allowed_s`` seconds."""
        _SLOT.pack_into(self._memory, self._at + _DEADLINE.size, self._pid, phase.encode(), model.encode())
        _DEADLINE.pack_into(self._memory, self._at, time.monotonic() + allowed_s)

    def leave(self) -> None:
        """Note that it is out again."""
        _DEADLINE.pack_into(self._memory, self._at, 0.0)


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")
