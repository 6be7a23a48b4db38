"""Which models one container is believed to hold, in order of their last use. Pure: no clock, lock or socket.

    hold    a request of the platform is under way for this model; such a model is never unloaded
    waiting a holder that itself waits for room; it must not be waited for in turn, or two would wait for each other
    leaving its DELETE is under way; it may not be loaded again before that has ended
    loading its POST is under way; it takes room already, and may be unloaded once it is loaded

Does not cover: bytes. The platform knows nothing of a model's size; the container's 507 is its only sign.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class Residents:
    """The names believed loaded, oldest use first, with who holds what."""

    def __init__(self) -> None:
        self._loaded: dict[str, None] = {}
        self._holds: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._leaving: set[str] = set()
        self._loading: set[str] = set()
        #: How often room has come back; who waits for room tries again when this has changed.
        self.freed = 0

    def names(self) -> list[str]:
        """Return the loaded names, least recently used first."""
        return list(self._loaded)

    def in_flight(self) -> int:
        """Return how many holds there are in all."""
        return self._holds.total()

    def calls(self, name: str | None) -> int:
        """Return how many holds there are on ``name``."""
        return 0 if name is None else self._holds[name]

    def is_loaded(self, name: str) -> bool:
        """True when the container is believed to hold ``name``."""
        return name in self._loaded

    def is_held(self, name: str) -> bool:
        """True while a request for ``name`` is under way."""
        return self._holds[name] > 0

    def is_leaving(self, name: str) -> bool:
        """True while ``name`` is being unloaded."""
        return name in self._leaving

    def hold(self, name: str) -> None:
        """A request for ``name`` begins; it becomes the most recently used."""
        self._holds[name] += 1
        self._touch(name)

    def release(self, name: str) -> None:
        """A request for ``name`` has ended."""
        assert self._holds[name] > 0, name
        self._take(self._holds, name)
        self._touch(name)

    def wait(self, name: str) -> None:
        """A holder of ``name`` begins to wait for room."""
        self._waiting[name] += 1

    def wake(self, name: str) -> None:
        """A holder of ``name`` waits no longer."""
        self._take(self._waiting, name)

    def add(self, name: str) -> None:
        """The container has loaded ``name``."""
        self._loaded.pop(name, None)
        self._loaded[name] = None

    def forget(self, name: str) -> None:
        """The container has said that it does not know ``name``."""
        self._loaded.pop(name, None)

    def victim(self, besides: str) -> str | None:
        """Return the least recently used model that nobody holds, ``besides`` excepted, or None."""
        return next((name for name in self._loaded if name != besides and not self._holds[name]), None)

    def worth_waiting(self, besides: str) -> bool:
        """True when room may come without unloading an idle model now.

        That is when a model is leaving, is loading, or is held, by somebody who does not wait for room too.
        """
        taking = any(name != besides and not self._waiting[name] for name in self._loading)
        busy = any(name != besides and self._holds[name] > self._waiting[name] for name in self._loaded)
        return bool(self._leaving) or taking or busy

    def leave(self, name: str) -> None:
        """The unloading of ``name`` begins."""
        self.forget(name)
        self._leaving.add(name)

    def left(self, name: str) -> None:
        """The unloading of ``name`` has ended."""
        self._leaving.discard(name)
        self.freed += 1

    def begin_load(self, name: str) -> None:
        """The loading of ``name`` begins."""
        self._loading.add(name)

    def end_load(self, name: str, loaded: bool) -> None:
        """The loading of ``name`` has ended."""
        self._loading.discard(name)
        if loaded:
            self.add(name)
        else:
            self.freed += 1

    def reconcile(self, listed: Iterable[str], before: Iterable[str]) -> tuple[list[str], list[str]]:
        """Follow the container's own list; returns (names adopted, names forgotten).

        before: what was believed loaded when the list was asked for. Only what both agree on is changed, so that a
        load or an unload under way while the list travelled is left alone. Adopted names, left over from an earlier
        run against the same container, become the least recently used.
        """
        names, known = set(listed), set(before)
        gone = [name for name in self._loaded if name in known and name not in names and not self._holds[name]]
        for name in gone:
            self.forget(name)
        new = sorted(n for n in names if n not in known and n not in self._loaded and n not in self._leaving)
        self._loaded = {**dict.fromkeys(new), **self._loaded}
        return new, gone

    def _touch(self, name: str) -> None:
        if name in self._loaded:
            self.add(name)

    @staticmethod
    def _take(counter: Counter[str], name: str) -> None:
        counter[name] -= 1
        if not counter[name]:
            del counter[name]
