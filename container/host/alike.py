"""Equal weights of the models in one process of authors' code, kept once; what an author writes stays that model's own.

    model A ─┐  fingerprints match, every byte compared
             ├──> one sealed file in memory, mapped privately by each: the kernel copies a page that somebody writes to
    model B ─┘

Nothing is asked of the code: its tensors are writable as before, and a write changes its own model's answers only.
What is compared is what the weights are now, not what a file says. ``compare`` may take a while and runs on a thread of
the caller's; ``carry_out`` takes a moment, in which nothing of the models it names may run, nor may have since
``compare`` began. One verb runs at a time.

Does not cover: storages that somebody else knows (``host/storages``), which stay the model's own; what the kernel has
copied since, which the figures do not know of.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from container import log
from container.host import storages
from container.host.storages import Stored
from container.memory import probe, sealed
from container.memory.likeness import LEAST_BYTES, fingerprints, same_bytes
from container.memory.mapping import FileMapping
from container.memory.pages import trim_heap

_log = log.get(__name__)


class Part:
    """What several models have in common, in a sealed file; gone with the last of them. bytes: of the contents."""

    def __init__(self, number: int, contents: Mapping[bytes, torch.Tensor]) -> None:
        """Copy ``contents``: fingerprint -> bytes. Raises OSError."""
        self.number = number
        self.sizes = {print_: content.nbytes for print_, content in contents.items()}
        self.bytes = sum(self.sizes.values())
        descriptor, self._size, self._starts = sealed.file(contents, "berth-parts")
        self._path = Path(f"/proc/self/fd/{descriptor}")
        weakref.finalize(self, os.close, descriptor).atexit = False

    def mapped(self) -> dict[bytes, torch.UntypedStorage]:
        """Return the contents in storages as large, for one model to write in; others do not see it.

        Raises OSError, MemoryError, or ValueError where somebody has closed the descriptor and has it for another file.
        """
        array = np.asarray(FileMapping(self._path, self._size))
        pieces = {print_: array[start : start + self.sizes[print_]] for print_, start in self._starts.items()}
        return {print_: torch.from_numpy(piece).untyped_storage() for print_, piece in pieces.items()}


@dataclass(slots=True)
class _Member:
    """A model. holds: returns what its modules are found in. measured, moved: bytes of it all, and in parts.

    homes: addresses of those that have moved.
    """

    holds: Callable[[], Any]
    measured: int
    salt: str
    parts: list[Part] = field(default_factory=list)
    moved: int = 0
    homes: set[int] = field(default_factory=set)

    def sampled(self) -> dict[bytes, Stored]:
        """Return its own storages by fingerprint; of equal ones within the model the first."""
        found = [stored for stored in storages.find(self.holds()) if stored.start not in self.homes]
        prints = fingerprints(dict(enumerate(stored.content() for stored in found)), self.salt)
        return {prints[at]: found[at] for at in reversed(range(len(found)))}


class _Move(NamedTuple):
    """What is to happen to one storage."""

    model: str
    print: bytes
    stored: Stored
    memory: torch.UntypedStorage
    part: Part


@dataclass(slots=True)
class Finding:
    """What one model has in common with others. waits: something more, once all that have it rest."""

    name: str
    moves: list[_Move] = field(default_factory=list)
    waits: bool = False

    @property
    def models(self) -> set[str]:
        """Those with something to be moved."""
        return {move.model for move in self.moves}


class Cut(NamedTuple):
    """What a model consists of: bytes of its own, and parts."""

    own_bytes: int
    parts: list[Part]


class Book:
    """Who has what, by content."""

    def __init__(self) -> None:
        self._members: dict[str, _Member] = {}
        self._owners: dict[bytes, str] = {}  # fingerprint -> a model that has such a storage for itself
        self._parts: weakref.WeakValueDictionary[bytes, Part] = weakref.WeakValueDictionary()
        self._made = 0

    def enrol(self, name: str, holds: Callable[[], Any], nbytes: int, salt: str = "") -> None:
        """Let ``name``, of ``nbytes``, share with others of the same ``salt``; nothing if it is in the book already."""
        self._members.setdefault(name, _Member(holds, nbytes, salt))

    def forget(self, name: str) -> None:
        """``name`` is on its way out; parts that nobody else has go with its last tensor."""
        self._members.pop(name, None)
        self._owners = {print_: owner for print_, owner in self._owners.items() if owner != name}

    def compare(self, name: str, resting: Collection[str]) -> Finding:
        """Find what ``name`` has in common with models that are ``resting``, and copy it where it is new."""
        try:
            return self._compare(name, resting)
        except (RuntimeError, MemoryError) as error:  # code that runs by now changes its modules under the search
            _log.info("what %s has in common with others is looked for again: %s", name, error)
            return Finding(name, waits=True)

    def _compare(self, name: str, resting: Collection[str]) -> Finding:
        finding, mine = Finding(name), self._members[name].sampled()
        if name not in resting:
            finding.waits = any(print_ in self._parts or self._other_owner(print_, name) for print_ in mine)
        else:
            mine = {print_: stored for print_, stored in mine.items() if stored.is_free()}
            for part in self._known(mine):
                self._use(finding, part, mine)
            for partner in self._partners(name, mine):
                if partner in resting:
                    self._make(finding, partner, mine)
                else:
                    finding.waits = True
        for print_ in mine:  # what is left: the next one finds it here
            if not (finding.waits and self._other_owner(print_, name)):
                self._owners[print_] = name
        return finding

    def carry_out(self, finding: Finding) -> dict[str, Cut] | None:
        """Move what was found; return what all models that it changed consist of.

        None: something has changed meanwhile, and nothing was moved.
        """
        if not all(move.stored.is_free() for move in finding.moves):
            return None
        for model, print_, stored, memory, part in finding.moves:
            member = self._members[model]
            if part not in member.parts:
                member.parts.append(part)
            self._parts[print_] = part
            self._owners.pop(print_, None)
            if stored.move(memory):
                member.moved += stored.bytes
                member.homes.add(memory.data_ptr())
        return {model: self._cut(model) for model in finding.models}

    def tidy(self, finding: Finding) -> None:
        """Give back what weights left which have moved, on a thread: unmapping 500 MB takes 50 ms."""
        if finding.moves:
            while finding.moves:
                finding.moves.pop()  # one by one, for others want the interpreter
            trim_heap()  # which would keep it

    def _cut(self, name: str) -> Cut:
        member = self._members[name]
        return Cut(max(0, member.measured - member.moved), member.parts)

    def _other_owner(self, print_: bytes, name: str) -> bool:
        return self._owners.get(print_, name) != name

    def _known(self, mine: Mapping[bytes, Stored]) -> list[Part]:
        """Return the parts with such contents, those with the most bytes of them first."""
        found: Counter[Part] = Counter()
        for print_, stored in mine.items():
            if (part := self._parts.get(print_)) is not None:
                found[part] += stored.bytes
        return [part for part, nbytes in found.most_common() if nbytes >= LEAST_BYTES]

    def _partners(self, name: str, mine: Mapping[bytes, Stored]) -> list[str]:
        """Return the models that have such contents for themselves, most bytes first."""
        found: Counter[str] = Counter()
        for print_, stored in mine.items():
            if self._other_owner(print_, name):
                found[self._owners[print_]] += stored.bytes
        return [partner for partner, nbytes in found.most_common() if nbytes >= LEAST_BYTES]

    def _use(self, finding: Finding, part: Part, mine: dict[bytes, Stored]) -> None:
        """Have what is equal move into ``part``."""
        try:
            memory = part.mapped()
        except (OSError, MemoryError, ValueError) as error:
            _log.warning("equal weights of %s stay apart: %s", finding.name, error)
            return
        equal = _equal(mine, {print_: storages.whole(piece) for print_, piece in memory.items()})
        if sum(part.sizes[print_] for print_ in equal) >= LEAST_BYTES:
            for print_ in equal:
                finding.moves.append(_Move(finding.name, print_, mine.pop(print_), memory[print_], part))

    def _make(self, finding: Finding, partner: str, mine: dict[bytes, Stored]) -> None:
        """Have what is equal in two models move into a part of both."""
        theirs = {
            print_: stored
            for print_, stored in self._members[partner].sampled().items()
            if print_ in mine and stored.start != mine[print_].start and stored.is_free()
        }
        equal = _equal(mine, {print_: stored.content() for print_, stored in theirs.items()})
        if (nbytes := sum(mine[print_].bytes for print_ in equal)) < LEAST_BYTES:
            return
        if nbytes > probe.free_ram_bytes():  # there are three of each for a moment
            finding.waits = True
            return
        try:
            part = Part(self._made + 1, {print_: mine[print_].content() for print_ in equal})
            homes = [(finding.name, mine, part.mapped()), (partner, theirs, part.mapped())]
        except (OSError, MemoryError, ValueError) as error:
            _log.warning("equal weights of %s and %s stay apart: no memory for both (%s)", finding.name, partner, error)
            return
        for _, stored, memory in homes:  # once more: this is the copy, whose pages are at hand from here on
            if set(_equal(stored, {print_: storages.whole(memory[print_]) for print_ in equal})) != set(equal):
                finding.waits = True
                return
        self._made += 1
        for model, stored, memory in homes:
            finding.moves.extend(_Move(model, print_, stored[print_], memory[print_], part) for print_ in equal)
        for print_ in equal:
            del mine[print_]


def _equal(mine: Mapping[bytes, Stored], others: Mapping[bytes, torch.Tensor]) -> list[bytes]:
    """Return the fingerprints under which both have the same bytes."""
    return [print_ for print_, other in others.items() if print_ in mine and same_bytes(mine[print_].content(), other)]
