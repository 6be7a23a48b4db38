"""Bytes of tokenizers: which models have which, as segments that models of one content share, and who goes first.

    expect (before room is made) ──> found (the model is open) ──> forget (it was put down): then perhaps nobody has it

A tokenizer that no model has any more may stay (``nets/stock``), but only in what the ledger has free: no model sinks
or is refused for it. Where models lie on a device of its own, tokenizers lie in RAM beside its limits, and show only.
Each name has one caller at a time; different names may come from any thread.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from container.errors import BadArchive
from container.memory.ledger import Segment
from container.nets import stock, tokenizer
from container.nets.stock import Content


class Tokenizers:
    """Those of the models in one process. share: whether models have them in common."""

    def __init__(self, *, share: bool) -> None:
        self._share = share
        self._lock = threading.Lock()
        self._of: dict[str, frozenset[Content]] = {}
        self._users: Counter[Content] = Counter()

    def scope(self, name: str, salt: str) -> str:
        """Return what models must have in common to share: their salt, or nothing at all."""
        return f"salt {salt}" if self._share else f"model {name}"

    def expect(self, name: str, folder: Path, salt: str) -> list[Segment]:
        """Return what ``name`` will have once it is open; nothing if that cannot be read, which opening it tells."""
        try:
            self.found(name, [tokenizer.content_of(folder, self.scope(name, salt))])
        except (BadArchive, OSError):
            self.forget(name)
        return self.segments(name)

    def found(self, name: str, contents: Iterable[Content]) -> None:
        """``name`` has these from here on."""
        with self._lock:
            self._leave(name)
            self._of[name] = frozenset(contents)
            self._users.update(self._of[name])

    def forget(self, name: str) -> None:
        """``name`` has none any more."""
        with self._lock:
            self._leave(name)

    def _leave(self, name: str) -> None:
        for content in self._of.pop(name, ()):
            self._users[content] -= 1
            if not self._users[content]:
                del self._users[content]

    def of(self, name: str) -> frozenset[Content]:
        """Return what those of ``name`` are made of."""
        return self._of.get(name, frozenset())

    def segments(self, name: str) -> list[Segment]:
        """Return those of ``name`` as the ledger books them."""
        return [Segment(content.id, content.bytes) for content in sorted(self.of(name))]

    def bytes(self, name: str = "") -> int:
        """Return the bytes of those that ``name`` has, that any model has if not given; each content once."""
        with self._lock:
            return sum(content.bytes for content in (self._of.get(name, ()) if name else self._users))

    @property
    def idle_bytes(self) -> int:
        """The bytes of those that are kept though no model has them."""
        return stock.STOCK.idle_bytes(self._used())

    def give_way(self, free_bytes: int) -> None:
        """Let no more be kept for nobody than ``free_bytes``."""
        stock.STOCK.shrink(free_bytes, self._used())

    def _used(self) -> set[Content]:
        with self._lock:
            return set(self._users)
