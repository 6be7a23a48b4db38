"""Where a model runs: on the engine's own lanes (our handlers), or in a host child (authors' code).

    prepare ──> bring_up ──> submit, submit, ... ──> put_down(keep) ──> again ──> bring_up ──> ... ──> put_down
                   └──> join (shares weights, meanwhile)

A runner brings a model up, takes its requests, and puts it down; it decides nothing.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from container import log
from container.archive.manifest import Manifest
from container.errors import ServingError
from container.handler import Context, Weights
from container.memory import pages
from container.memory.known import Known
from container.memory.ledger import Segment
from container.memory.tokenizers import Tokenizers
from container.model import opening
from container.model.dispatch import Dispatcher
from container.model.ticket import Ticket
from container.nets import stock
from container.payload import Payload

_Result = TypeVar("_Result")

#: To unmap no more than this takes less time (50 us) than to have another thread do it.
LITTLE_BYTES = 4 << 20
#: So long after a load memory that it left between allocations is given back.
TIDY_S = 3.0
#: Threads that have one file read ahead: the disk rests while the only one makes room in the page cache.
READERS = 2


class Up(NamedTuple):
    """A model that has come up: what it consists of, how long each phase took, a request that it takes (None = ?).

    movable: it has kept a copy in RAM, and can be lowered to it.
    """

    segments: list[Segment]
    times_ms: dict[str, float]
    example: Payload | None = None
    movable: bool = False


class Runner(Protocol):
    """What the engine needs of a place where models run."""

    def prepare(self, name: str, manifest: Manifest, known_bytes: int) -> list[Segment]:
        """Return what to reserve for ``name``; on a loader thread, reads files. Raises BadArchive.

        known_bytes: what the same files took when they were up before, 0 if they never were.
        """

    def again(self, name: str) -> list[Segment] | None:
        """Return what to reserve for ``name``, whose folder is as it was; on a loader thread.

        None: nothing of it was kept, or it cannot be used; then ``prepare`` it.
        """

    async def bring_up(self, name: str, manifest: Manifest) -> Up:
        """Load ``name``; return its measured segments. Raises ServingError."""

    async def join(self, name: str) -> dict[str, list[Segment]]:
        """Share what ``name``, which is up, has in common with others; return the segments of all that changed."""

    async def put_down(self, name: str, *, keep: bool = False) -> None:
        """Drop ``name`` and everything it holds, also what was only prepared; it is idle.

        keep: it stays registered, and a few kilobytes that make it rise ``again`` faster may stay.
        """

    async def settle(self) -> None:
        """Return when nothing in the background can hold on to a model that was put down."""

    def submit(self, name: str, ticket: Ticket) -> None:
        """Answer ``ticket`` in time; settles it exactly once unless it is dropped or given back."""

    def up(self, name: str) -> bool:
        """Whether ``name`` can be reached; False between a process's death and the moment that it is noticed."""

    def busy(self, name: str) -> bool:
        """Whether anything of ``name`` waits or runs here."""


class OnLanes:
    """What all runners on the engine's own lanes have in common.

    loaders: threads that read files. room: what one claim of a model can ever get.
    """

    def __init__(
        self, dispatcher: Dispatcher, loaders: Executor, room: Callable[[str], int], tokenizers: Tokenizers
    ) -> None:
        self._room = room
        self.tokenizers = tokenizers
        self._dispatcher = dispatcher
        self._loaders = loaders

    def submit(self, name: str, ticket: Ticket) -> None:
        """Queue for a lane."""
        self._dispatcher.submit(name, ticket)

    def up(self, name: str) -> bool:
        """Return True: the lanes live as long as this process."""
        return True

    def busy(self, name: str) -> bool:
        """Whether anything of ``name`` waits or runs on the lanes."""
        return self._dispatcher.busy(name)

    async def _on(self, threads: Executor, work: Callable[[], _Result]) -> _Result:
        """Return what ``work`` does on a thread; a cancelled caller waits for its end, for what follows undoes it."""
        task = asyncio.get_running_loop().run_in_executor(threads, work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    async def trim(self) -> None:
        """Give memory that sunk models left, and nobody uses, to whoever allocates or lives in another process."""
        raise NotImplementedError

    def _open_here(
        self, name: str, manifest: Manifest, device: str, weights: Callable[[Path], Weights]
    ) -> opening.Opened:
        """Open a model of ours in this process, on a loader thread. Raises ServingError.

        weights: opens a folder.
        """
        self._dispatcher.await_lull()
        properties, room = {"model_dir": manifest.model_dir}, functools.partial(self._room, name)
        context = Context(name, device, manifest.settings.options, weights, properties, room)
        with log.bind(model=name), stock.noting(self.tokenizers.scope(name, manifest.settings.salt)) as taken:
            opened = opening.open_model(manifest, context)
        self.tokenizers.found(name, taken)
        return opened


@dataclass(slots=True)
class _Open:
    """A model that has loaded: it is up, or rests.

    taken: what its tokenizers are made of. item_s: what a request of it takes, as far as is known.
    """

    opened: opening.Opened
    taken: frozenset[stock.Content]
    item_s: float | None = None


class LaneRunner(OnLanes):
    """Our own handlers, with their weights from ``known``. sharer: one thread, for comparing."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        loaders: Executor,
        sharer: Executor,
        device: str,
        known: Known,
        room: Callable[[str], int],
        tokenizers: Tokenizers,
    ) -> None:
        super().__init__(dispatcher, loaders, room, tokenizers)
        self._sharer = sharer
        self._sharer.submit(pages.trim_heap)  # so that its thread is there from the start, whenever it is counted
        # Neither is nicer: who rises waits for the room that is given up, and for the disk, which waits for the reader.
        self._closer = ThreadPoolExecutor(1, "closer")  # never behind a load, and off the loop: unmapping takes a while
        self._readers = ThreadPoolExecutor(READERS, "reader")
        self._device = device
        self._known = known
        self._opened: dict[str, _Open] = {}
        self._joins: list[Future[list[str]]] = []
        self._tidying: asyncio.TimerHandle | None = None

    def prepare(self, name: str, manifest: Manifest, known_bytes: int) -> list[Segment]:
        """See Runner: exact, and less what others have already."""
        self._close(name, keep=False)
        self._dispatcher.await_lull()
        segments = self._known.prepare(name, manifest)
        return segments + self.tokenizers.expect(name, Path(manifest.model_dir), manifest.settings.salt)

    def again(self, name: str) -> list[Segment] | None:
        """See Runner: maps the files again and wakes the handler that stood on them."""
        started, there = time.perf_counter(), self._opened.get(name)
        if there is None:
            return None
        self.tokenizers.found(name, there.taken)
        try:
            if not (self._known.again(name) and there.opened.handler.wake()):
                return None
        except ServingError:
            return None  # it is told with its reason by the load that follows
        there.opened.times_ms = {"rise": round((time.perf_counter() - started) * 1e3, 3)}
        return self._known.segments(name) + self.tokenizers.segments(name)

    async def bring_up(self, name: str, manifest: Manifest) -> Up:
        """Load on a loader thread if it has not come up again as it was, have it read, then accept requests."""
        there = self._opened.get(name)
        if there is None:
            there = self._opened[name] = _Open(await self._load(name, manifest), self.tokenizers.of(name))
        await self._read_ahead(name)
        opened, batch = there.opened, manifest.settings.batch
        self._dispatcher.open(
            name,
            opened.handler,
            batch.max_size,
            batch.max_delay_ms,
            manifest.settings.timeout_s,
            functools.partial(self._known.is_fresh, name),
            there.item_s,
        )
        segments = self._known.segments(name) or [Segment(name, opened.bytes)]
        return Up(segments + self.tokenizers.segments(name), opened.times_ms, opening.example_of(opened.handler))

    async def _read_ahead(self, name: str) -> None:
        reads = self._known.reads(name, READERS, busy=self._dispatcher.computing)
        await asyncio.gather(*(self._on(self._readers, read) for read in reads))

    async def trim(self) -> None:
        """See OnLanes."""
        await self._on(self._closer, self._known.trim)

    async def _load(self, name: str, manifest: Manifest) -> opening.Opened:
        weights = functools.partial(self._known.open, name, manifest)
        work = functools.partial(self._open_here, name, manifest, self._device, weights)
        return await self._on(self._loaders, work)

    async def join(self, name: str) -> dict[str, list[Segment]]:
        """See Runner. One after the other, on a thread of its own."""
        if self._known.is_whole(name):
            self._tidy_soon()
            return {}
        joining = self._sharer.submit(self._known.join, name)
        self._joins = [*(one for one in self._joins if not one.done()), joining]
        changed = await asyncio.wrap_future(joining)
        self._tidy_soon()
        # Asked now, on the loop: what was put down meanwhile has none.
        found = {one: segments for one in changed if (segments := self._known.segments(one))}
        return {one: segments + self.tokenizers.segments(one) for one, segments in found.items()}

    def _tidy_soon(self) -> None:
        """Give back what loads leave free between what they keep, 30 KiB each, a while later, in the background.

        Not at once: batches have to fetch anew what they had left there, too.
        """
        if self._tidying is None:
            self._tidying = asyncio.get_running_loop().call_later(TIDY_S, self._tidy)

    def _tidy(self) -> None:
        self._tidying = None
        self._sharer.submit(pages.trim_heap)

    async def put_down(self, name: str, *, keep: bool = False) -> None:
        """Close the handler, or let it rest; its weights are unmapped when this returns."""
        item_s = self._dispatcher.close(name)
        if (there := self._opened.get(name)) is not None and item_s is not None:
            there.item_s = item_s
        if self._known.bytes(name) <= LITTLE_BYTES:
            self._close(name, keep=keep)
            return

        def work() -> None:
            """Close; when it disturbs least, unless another waits for the room."""
            if not keep:
                self._dispatcher.await_lull()
            self._close(name, keep=keep)

        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._closer, work))

    async def settle(self) -> None:
        """Wait for the comparing that runs: it may hold tensors of a closed model. Those that begin later do not."""
        running = [asyncio.wrap_future(joining) for joining in self._joins if joining.running()]
        if running:
            await asyncio.wait(running)

    def _close(self, name: str, *, keep: bool) -> None:
        self.tokenizers.forget(name)
        there = self._opened.get(name)
        if there is not None and keep and there.opened.handler.rest() and self._known.rest(name):
            return
        if there is not None:
            del self._opened[name]
            there.opened.close()
        self._known.close(name)
