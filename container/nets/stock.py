"""Tokenizers that are built: one for each content, however many models have it, and some of those that none has now.

    take ──> built, or the one that is there ──> kept while there is room, and for as long as somebody has it

Building one and dropping one hold the interpreter's lock (27 and 10 ms for BERT's), which every running model feels. So
those used last are kept beyond their models, KEPT_BYTES at most: a model that sinks and rises has its own again.
Who has which, and when memory is short, the engine knows (``memory/tokenizers``) and calls ``shrink``.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from typing import NamedTuple

from tokenizers import Tokenizer

#: Of tokenizers that are kept whether or not a model uses them; the last one always is, until ``shrink``.
KEPT_BYTES = 64 << 20


class Content(NamedTuple):
    """What a tokenizer is made of: an id that is equal for equal files, options and scopes; the bytes it takes."""

    id: str
    bytes: int


class _Notes(NamedTuple):
    scope: str
    taken: list[Content]


_notes: ContextVar[_Notes | None] = ContextVar("notes", default=None)


@contextlib.contextmanager
def noting(scope: str) -> Iterator[list[Content]]:
    """Give the list that what is taken inside is added to. Models of different ``scope`` share no tokenizer."""
    notes = _Notes(scope, [])
    token = _notes.set(notes)
    try:
        yield notes.taken
    finally:
        _notes.reset(token)


def scope() -> str:
    """Return the scope of the ``noting`` around the caller, "" if there is none."""
    notes = _notes.get()
    return notes.scope if notes is not None else ""


class Stock:
    """All tokenizers of one process; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Content, Tokenizer] = OrderedDict()
        self._known: weakref.WeakValueDictionary[Content, Tokenizer] = weakref.WeakValueDictionary()

    def take(self, content: Content, build: Callable[[], Tokenizer]) -> Tokenizer:
        """Return the tokenizer of ``content``; do not change it. Raises what ``build`` raises."""
        with self._lock:  # two models of one content that load at once shall not both build
            found = self._known.get(content)
            if found is None:
                found = self._known[content] = build()
            self._keep(content, found)
        if (notes := _notes.get()) is not None:
            notes.taken.append(content)
        return found

    def find(self, content: Content) -> Tokenizer | None:
        """Return the tokenizer of ``content`` if it is there."""
        with self._lock:
            found = self._known.get(content)
            if found is not None:
                self._keep(content, found)
        return found

    def _keep(self, content: Content, used: Tokenizer) -> None:
        """Keep ``used`` as the last one, and no more than there is room for."""
        self._kept[content] = used
        self._kept.move_to_end(content)
        while len(self._kept) > 1 and sum(each.bytes for each in self._kept) > KEPT_BYTES:
            self._kept.popitem(last=False)

    def shrink(self, idle_bytes: int, used: Collection[Content]) -> None:
        """Drop those that nobody has (``used``: the others), the oldest first, down to ``idle_bytes``."""
        with self._lock:
            idle = [content for content in self._kept if content not in used]
            left = sum(content.bytes for content in idle)
            for content in idle:
                if left <= idle_bytes:
                    break
                del self._kept[content]
                left -= content.bytes

    def idle_bytes(self, used: Collection[Content]) -> int:
        """Return the bytes of those that are kept though nobody has them (``used``: the others)."""
        with self._lock:
            return sum(content.bytes for content in self._kept if content not in used)


#: The process's own.
STOCK = Stock()
