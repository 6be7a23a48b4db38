"""Who is inside a model's code right now, and until when: a page of memory that the supervisor can read.

Before a lane enters a handler it writes (pid, phase, model, deadline) into its slot, and clears the deadline when it is
out; and the event loop of each process has a pulse there. A process that hangs, even one that holds the interpreter's
lock, cannot hide what it hangs in; one that dies leaves behind whose code it died in. Writing costs about a microsecond
and takes no lock: a slot has one writer, and the deadline is written last and cleared first.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
import time
from pathlib import Path
from typing import NamedTuple

_SLOT = struct.Struct("<I20s256s")
_DEADLINE = struct.Struct("<d")
_STRIDE = 288
SLOTS = 4096
#: The engine's slots come first; then those of its children, a block each: two lanes, jobs on the event loop, the
#: loader, the loop's pulse.
ENGINE_SLOTS = 8
BLOCK = 5
#: Phase of a process's event loop, which is inside nobody's code: how often it says that it turns, and how long it may
#: be silent while no other slot of its process is within its time.
LOOP, PULSE_S, SILENT_S = "loop", 1.0, 20.0
#: After everything stood still this long (a container that was paused), everybody has this much longer.
GAP_S, LENIENT_S = 2.0, 5.0
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

    def clear(self, pid: int) -> list[Inside]:
        """Empty the slots of a process that is dead; return whose code it was in."""
        was = [inside for inside in self.inside() if inside.pid == pid]
        for inside in was:
            _DEADLINE.pack_into(self._memory, inside.slot * _STRIDE, 0.0)
        return [inside for inside in was if inside.phase != LOOP]

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

    async def beat(self) -> None:
        """Say again and again that the event loop turns; ends with it."""
        while True:
            self.enter(LOOP, "", SILENT_S)
            await asyncio.sleep(PULSE_S)


class Patience:
    """When it is over: whoever is past the deadline, unless everything stood still, the one who looks included. Pure.

    A silent loop counts only where nobody's code may be what keeps it: none of its process is within its time.
    """

    def __init__(self) -> None:
        self._looked_s = float("inf")
        self._lenient_until_s = 0.0

    def over(self, inside: list[Inside], now_s: float) -> list[Inside]:
        """Return those of ``inside`` whose processes must be killed. Called all the time."""
        if now_s - self._looked_s > GAP_S:
            self._lenient_until_s = now_s + LENIENT_S
        self._looked_s = now_s
        if now_s < self._lenient_until_s:
            return []
        working = {each.pid for each in inside if each.phase != LOOP and each.deadline_s >= now_s}
        late = [each for each in inside if each.deadline_s < now_s]
        return [each for each in late if each.phase != LOOP or each.pid not in working]


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")
