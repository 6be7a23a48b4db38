"""The weights of known models on one device: opened before room is made for them, shared once they are up.

    prepare ──> segments to reserve ──> open (by the handler) ──> join (off the path) ──> segments to recut ──> close
       again <──> rest      sunk: the map is closed, and opened again as the same object if its files are the same

Preparing opens the map where that takes no memory (served in place from the file), because only then can be told what
of it is there already: copies of one model that were each reserved in full would push each other out before they could
meet. Where opening takes memory, the prediction is reserved and the map is opened afterwards.

Does not cover: the ledger (the engine's loop writes what is returned here), when any of this is done.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from container.archive.manifest import Manifest
from container.errors import BadArchive
from container.memory import probe, sharing, sizes
from container.memory.ledger import Segment
from container.memory.mapped import WeightsChanged
from container.memory.pieces import Pieces
from container.memory.weights import CHANGED_QUIET_S, QUIET_S, WeightMap, open_weights

#: Smaller files the kernel brings at the first touch.
AHEAD_BYTES = 8 << 20
#: To ask the machine takes a quarter of a millisecond, which others feel.
_LOOK_EVERY_S = 0.5


@dataclass(slots=True)
class _Held:
    """One model's open map. expected_bytes: what it will have for itself once joined; None = it has joined.

    past: it comes up, and the page cache would have no room for it beside the others once it has sunk.
    """

    weights: WeightMap
    folder: Path
    salt: str
    expected_bytes: int | None = None
    past: bool = False

    @property
    def ahead_bytes(self) -> int:
        """What fetching page by page would keep a batch waiting for; 0 if that is little, or the lesser part."""
        nbytes = self.weights.mapped_bytes
        return nbytes if nbytes >= max(AHEAD_BYTES, self.weights.bytes // 2) else 0

    @property
    def is_copy(self) -> bool:
        """Will the lesser part of it stay once it has joined? Then it is only passing through memory."""
        return self.expected_bytes is not None and self.expected_bytes < self.weights.bytes // 2


class Known:
    """All open maps of one device. Each name has one caller at a time; different names may come from any thread.

    free: the bytes of RAM that this process may still take, mapped files counted as free.
    """

    def __init__(
        self, device: str, *, allow_pickle: bool, share: bool, free: Callable[[], int] = probe.free_ram_bytes
    ) -> None:
        self._device = device
        self._free = free
        self._left = (-_LOOK_EVERY_S, 0)
        self._pieces = Pieces()
        self._coming = threading.Lock()
        self._allow_pickle = allow_pickle
        self._sharing = sharing.Sharing() if share and device == "cpu" else None
        self._held: dict[str, _Held] = {}
        self._changed: set[str] = set()

    def prepare(self, name: str, manifest: Manifest) -> list[Segment]:
        """Return the segments that ``name`` will consist of; on a loader thread. Raises BadArchive."""
        self.close(name)
        folder, dtype = Path(manifest.model_dir), manifest.settings.dtype
        if not sizes.in_place(folder, dtype, self._device):
            return [Segment(name, sizes.checkpoint_bytes(folder, dtype, self._device))]
        self._open(name, manifest, folder)
        return self.segments(name)

    def open(self, name: str, manifest: Manifest, folder: Path) -> WeightMap:
        """Return the open map of the checkpoint right under ``folder``. Raises BadArchive."""
        held = self._held.get(name)
        if held is None or held.folder != folder:
            self.close(name)
            held = self._open(name, manifest, folder)
        return held.weights

    def _open(self, name: str, manifest: Manifest, folder: Path) -> _Held:
        dtype, salt = manifest.settings.dtype, manifest.settings.salt
        quiet_s = CHANGED_QUIET_S if name in self._changed else QUIET_S
        weights = open_weights(folder, dtype, self._device, allow_pickle=self._allow_pickle, quiet_s=quiet_s)
        self._changed.discard(name)
        held = self._held[name] = _Held(weights, folder, salt)
        self._meet(name, held)
        return held

    def _meet(self, name: str, held: _Held) -> None:
        """Find what ``name``, just opened, may share with others."""
        if self._sharing is not None:
            held.expected_bytes = self._sharing.meet(name, held.weights, held.salt)
        nbytes = 0 if held.is_copy else held.ahead_bytes
        if nbytes and self._left_for_cache() < nbytes:
            held.past = True
            self._expect()

    def _left_for_cache(self) -> int:
        """Return what the machine has left beside all models that are open, as of the last half second."""
        now, (seen_s, left) = time.monotonic(), self._left
        if now - seen_s > _LOOK_EVERY_S:
            left = self._free() + self.spare_bytes - self.mapped_bytes(lambda _: True)
            self._left = now, left
        return left

    def again(self, name: str) -> bool:
        """Open the map that was put to ``rest``, for the same handler; False if it is not there, or its files are."""
        held = self._held.get(name)
        if held is None or name in self._changed:
            return False
        try:
            held.weights.open()
        except (WeightsChanged, BadArchive):
            return False
        self._meet(name, held)
        return True

    def reads(self, name: str, most: int, busy: bool) -> list[Callable[[], None]]:
        """Return what has the files of ``name`` read, to be done at once on at most ``most`` threads; [] if little.

        busy: the cores are wanted. Two threads fill the page cache no faster then than one, and others feel them.
        """
        held = self._held.get(name)
        if held is None or not held.ahead_bytes:
            return []
        parts = 1 if busy and not held.past else most
        into = self._pieces if held.past else None
        unread = itertools.count(parts - 1, -1)

        def read(part: int) -> None:
            """Read one part; whoever is last notes it."""
            held.weights.read_ahead(part, parts, into)
            if next(unread) == 0:
                self.has_come(name)

        return [functools.partial(read, part) for part in range(parts)]

    def has_come(self, name: str) -> None:
        """Note that ``name`` was read, or does not come up after all: memory that was kept for it is free."""
        held = self._held.get(name)
        if held is not None and held.past:
            held.past = False
            self._expect()

    def trim(self) -> None:
        """Give up memory that lies ready for who comes up: somebody else needs it."""
        self._pieces.trim()

    def _expect(self) -> None:
        """Let memory of who sinks be kept for those who come up, as much as they take."""
        with self._coming:
            coming = [held.weights.mapped_bytes for held in list(self._held.values()) if held.past]
            self._pieces.expect(sum(coming))

    def rest(self, name: str) -> bool:
        """Let go of all memory of ``name``, but for what opens it ``again``; False if reading it anew is no slower."""
        held = self._held.get(name)
        if held is None or not held.weights.is_in_place:
            return False
        self.has_come(name)
        held.weights.close()
        held.expected_bytes = None
        return True

    def is_whole(self, name: str) -> bool:
        """Whether ``join`` has nothing to do for ``name``."""
        held = self._held.get(name)
        return held is None or held.expected_bytes is None

    def join(self, name: str) -> list[str]:
        """Share what ``name`` has in common with others; return the models whose segments are others now.

        May take as long as reading all of it: not on the loop, nor on a loader thread.
        """
        held = self._held.get(name)
        if held is None or self._sharing is None or held.expected_bytes is None:
            return []
        changed = self._sharing.join(name, held.weights, held.salt)
        held.expected_bytes = None
        return list(changed.keys() | {name})

    def segments(self, name: str) -> list[Segment]:
        """Return what ``name`` consists of now, [] if it is not open."""
        held = self._held.get(name)
        if held is None or not held.weights.is_open:
            return []
        segments = sharing.segments(name, held.weights)
        return segments if held.expected_bytes is None else [*segments[:-1], Segment(name, held.expected_bytes)]

    def bytes(self, name: str) -> int:
        """Return what the open tensors of ``name`` take, those that it shares included; 0 if it is not open."""
        held = self._held.get(name)
        return held.weights.bytes if held is not None and held.weights.is_open else 0

    @property
    def spare_bytes(self) -> int:
        """The bytes that lie ready for who comes up, and count as taken to the machine."""
        return self._pieces.spare_bytes

    def mapped_bytes(self, counts: Callable[[str], bool]) -> int:
        """Return the bytes of the models that ``counts`` and that are served from their files; from any thread."""
        return sum(held.weights.mapped_bytes for name, held in list(self._held.items()) if counts(name))

    def is_fresh(self, name: str) -> bool:
        """Whether the files under ``name`` are still those that were opened; 3 µs a file."""
        held = self._held.get(name)
        if held is None:
            return True
        try:
            held.weights.check()
        except WeightsChanged:
            self._changed.add(name)
            return False
        return True

    def close(self, name: str) -> None:
        """Let go of everything of ``name``; nothing happens if it is not open."""
        self.has_come(name)
        held = self._held.pop(name, None)
        if held is not None:
            held.weights.close()
