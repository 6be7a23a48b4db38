"""Our own handlers on a device with memory of its own: opened once, then lifted and lowered as they stand.

    prepare ──> read (disk to RAM) ──> open (the handler) ──> lift <──> lower ──> put_down

Whatever files, allocations and the driver raise on the way is a ServingError from here on up; NoRun stays what it is.
Does not cover: room, order and retries (``engine/tiered``).
"""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from container import log
from container.archive.manifest import Manifest
from container.engine.runners import OnLanes, Up
from container.memory.blocks import Blocks
from container.memory.ledger import Segment
from container.memory.tokenizers import Tokenizers
from container.model import attempt, blame, opening
from container.model.dispatch import Dispatcher

_log = log.get(__name__)
_Result = TypeVar("_Result")


@dataclass(slots=True)
class _Open:
    """A handler that has loaded."""

    opened: opening.Opened
    manifest: Manifest


class TierRunner(OnLanes):
    """A Runner. loaders: threads that read files; movers: threads that wait for copies."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        loaders: Executor,
        movers: Executor,
        blocks: Blocks,
        room: Callable[[str], int],
        tokenizers: Tokenizers,
    ) -> None:
        super().__init__(dispatcher, loaders, room, tokenizers)
        self.blocks = blocks
        self._movers = movers
        self._open: dict[str, _Open] = {}

    def prepare(self, name: str, manifest: Manifest, known_bytes: int) -> list[Segment]:
        """See Runner: exact, and less what others have already."""
        self._dispatcher.await_lull()
        return self.blocks.prepare(name, manifest)

    async def _on(self, threads: Executor, work: Callable[[], _Result]) -> _Result:
        """See OnLanes. Raises ServingError."""
        try:
            return await super()._on(threads, work)
        except (OSError, RuntimeError, MemoryError) as error:
            attempt.end_if_poisoned(error)
            _log.error("moving weights failed", exc_info=error)
            traceback.clear_frames(error.__traceback__)  # which would keep the memory that was given up
            raise blame.while_loading(error) from error

    async def bring_up(self, name: str, manifest: Manifest) -> Up:
        """All the way, without a place in RAM. Raises NoRun, too."""
        await self.read(name, manifest, keep=False)
        up = await self.open(name, manifest)
        await self.lift(name)
        return up

    async def read(self, name: str, manifest: Manifest, *, keep: bool) -> None:
        """Read the files into RAM. Raises ServingError, NoRun."""
        await self._on(self._loaders, functools.partial(self.blocks.read, name, manifest, keep=keep))

    async def open(self, name: str, manifest: Manifest) -> Up:
        """Load the handler over its tensors in RAM; return what the model consists of. Raises ServingError."""
        opened = await self._on(self._loaders, functools.partial(self._load, name, manifest))
        self._open[name] = _Open(opened, manifest)
        return Up(self.blocks.segments(name), opened.times_ms, opening.example_of(opened.handler))

    async def lift(self, name: str) -> float:
        """Copy to the device, then accept requests; return the seconds of that, without the wait for a thread.

        Raises ServingError, NoRun; then nothing of it is there.
        """
        took_s = await self._on(self._movers, functools.partial(self._lift, name))
        settings, handler = self._open[name].manifest.settings, self._open[name].opened.handler
        batch = settings.batch
        is_fresh = functools.partial(self.blocks.is_fresh, name)
        self._dispatcher.open(name, handler, batch.max_size, batch.max_delay_ms, settings.timeout_s, is_fresh)
        return took_s

    def _lift(self, name: str) -> float:
        started = time.monotonic()
        self.blocks.lift(name)
        return time.monotonic() - started

    async def lower(self, name: str) -> bool:
        """Leave the device; its bytes there are free when this returns. What lay in RAM lies there: True."""
        self._dispatcher.close(name)
        await self._on(self._movers, functools.partial(self.blocks.lower, name))
        return True

    async def forget_copy(self, name: str) -> None:
        """Give up what only ``name`` has in RAM; what is on the device stays there."""
        self.blocks.drop_host(name)

    def again(self, name: str) -> list[Segment] | None:
        """See Runner: what sank to the disk is read anew."""
        return None

    async def put_down(self, name: str, *, keep: bool = False) -> None:
        """Drop the handler and everything it holds, on every tier."""
        self._dispatcher.close(name)
        if (there := self._open.pop(name, None)) is not None:
            there.opened.close()
            self.tokenizers.forget(name)
        await self._on(self._movers, functools.partial(self.blocks.close, name))

    async def join(self, name: str) -> dict[str, list[Segment]]:
        """See Runner: what is equal was found while it was read."""
        return {}

    async def settle(self) -> None:
        """Nothing of it runs in the background."""

    async def trim(self) -> None:
        """Give memory that nobody uses back, for a model of another process: the device's, and RAM over the limit."""
        await self._on(self._movers, self.blocks.on_device.trim)
        if self.blocks.host.outside_bytes:
            await self._on(self._movers, self.blocks.host.trim)

    def _load(self, name: str, manifest: Manifest) -> opening.Opened:
        weights = functools.partial(self.blocks.open, name, manifest)
        opened = self._open_here(name, manifest, self.blocks.device.compute, weights)
        self.blocks.rest(name)
        return opened
