"""Where a model runs: on the engine's own lanes (our handlers), or in a host child (authors' code).

A runner brings a model up, takes its requests, and puts it down; it decides nothing.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol

import msgspec

from container import log
from container.archive.manifest import Manifest
from container.errors import Failure, Restarting
from container.handler import Context, Weights
from container.host.process import ChildProcess
from container.memory import sizes
from container.model import pipeline
from container.model.dispatch import Dispatcher, Ticket
from container.payload import Payload
from container.wire import messages as m

_log = log.get(__name__)
#: What a child's death costs a request that was in it.
_RESTART_WAIT_S = 30.0


class Runner(Protocol):
    """What the engine needs of a place where models run."""

    def predict(self, manifest: Manifest) -> int:
        """Return the bytes that the model will take, from its files alone; reads files. Raises BadArchive."""

    async def bring_up(self, name: str, manifest: Manifest) -> m.Loaded:
        """Load ``name``; return its measured bytes. Raises ServingError."""

    async def put_down(self, name: str) -> None:
        """Drop ``name`` and everything it holds; it is idle."""

    def submit(self, name: str, ticket: Ticket) -> None:
        """Answer ``ticket`` in time; settles it exactly once unless it is dropped."""

    def busy(self, name: str) -> bool:
        """Whether anything of ``name`` waits or runs here."""


class LaneRunner:
    """Our own handlers, on the engine's lanes. ``open_weights`` maps a checkpoint (``memory/weights``)."""

    def __init__(
        self, dispatcher: Dispatcher, loaders: Executor, device: str, open_weights: Callable[[Manifest], Weights]
    ) -> None:
        self._dispatcher = dispatcher
        self._loaders = loaders
        self._device = device
        self._open_weights = open_weights
        self._opened: dict[str, pipeline.Opened] = {}

    def predict(self, manifest: Manifest) -> int:
        """Return the checkpoint's bytes in the serving dtype."""
        return sizes.checkpoint_bytes(Path(manifest.model_dir), manifest.settings.dtype, self._device)

    async def bring_up(self, name: str, manifest: Manifest) -> m.Loaded:
        """Load on a loader thread, then accept requests."""
        work = functools.partial(self._open, name, manifest)
        opened = await asyncio.get_running_loop().run_in_executor(self._loaders, work)
        self._opened[name] = opened
        batch = manifest.settings.batch
        self._dispatcher.open(name, opened.handler, batch.max_size, batch.max_delay_ms)
        return m.Loaded(0, opened.bytes, opened.times_ms)

    async def put_down(self, name: str) -> None:
        """Close the handler; its weights are unmapped when this returns."""
        self._dispatcher.close(name)
        opened = self._opened.pop(name, None)
        if opened is not None:
            opened.close()

    def submit(self, name: str, ticket: Ticket) -> None:
        """Queue for a lane."""
        self._dispatcher.submit(name, ticket)

    def busy(self, name: str) -> bool:
        """Whether anything of ``name`` waits or runs on the lanes."""
        return self._dispatcher.busy(name)

    def _open(self, name: str, manifest: Manifest) -> pipeline.Opened:
        context = Context(
            name,
            self._device,
            manifest.settings.options,
            open_weights=lambda folder: self._open_weights(manifest),
            properties={"model_dir": manifest.model_dir},
        )
        with log.bind(model=name):
            return pipeline.open_model(manifest, context)


class ChildRunner:
    """Authors' code, in a host child that is started again whenever it dies.

    ``on_lost`` is called with the names that were up, after their requests in flight have failed.
    """

    def __init__(self, process: ChildProcess) -> None:
        self._process = process
        self._here: set[str] = set()
        self._in_flight: dict[str, int] = {}
        self._up = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self.on_lost: Callable[[list[str], int], None] = lambda names, status: None
        self.deaths = 0
        process.on_death = self._died

    def start(self) -> None:
        """Start the child in the background; whoever needs it waits."""
        self._starting = asyncio.get_running_loop().create_task(self._start())

    async def stop(self) -> None:
        """End the child."""
        if self._starting is not None:
            self._starting.cancel()
        await self._process.stop()

    def predict(self, manifest: Manifest) -> int:
        """Return the bytes of the weight files; what the code makes of them is measured once it is loaded."""
        return sizes.folder_bytes(Path(manifest.model_dir))

    async def bring_up(self, name: str, manifest: Manifest) -> m.Loaded:
        """Load in the child; a child that dies meanwhile gets one more try."""
        request = m.Load(0, name, manifest.model_dir, msgspec.msgpack.encode(manifest))
        for last in (False, True):
            try:
                async with asyncio.timeout(_RESTART_WAIT_S):
                    await self._up.wait()
            except TimeoutError:
                raise Restarting("the process for archives' own code does not come up", retry_after_s=5.0) from None
            client = self._process.client
            try:
                if client is not None:
                    loaded = await client.call(request)
                    self._here.add(name)
                    assert isinstance(loaded, m.Loaded), loaded
                    return loaded
            except Restarting:
                if last:
                    raise
                self._up.clear()
                if self._process.client is not None and self._process.client.connected:
                    self._up.set()
        raise Restarting("the process for archives' own code has died twice under this load", retry_after_s=5.0)

    async def put_down(self, name: str) -> None:
        """Drop in the child, which waits until nothing of it runs; a dead child has dropped it already."""
        if name in self._here and self._process.client is not None:
            self._here.discard(name)
            try:
                await self._process.client.call(m.Unload(0, name))
            except Restarting:
                _log.info("the child died while %s was leaving it", name)

    def submit(self, name: str, ticket: Ticket) -> None:
        """Send to the child."""
        client = self._process.client
        if client is None:
            gone = Restarting("the process of this model's code is being restarted; try again", retry_after_s=1.0)
            ticket.settle(gone.to_failure())
            return
        self._in_flight[name] = self._in_flight.get(name, 0) + 1

        def on_result(result: Payload | Failure) -> None:
            self._in_flight[name] -= 1
            if not ticket.dropped:
                ticket.dropped = True
                ticket.settle(result)

        cancel = client.forward(name, ticket.payload, ticket.deadline_s, on_result)

        def on_drop() -> None:
            cancel()  # no result will come; if it already runs, the child itself waits for its end before an unload
            self._in_flight[name] -= 1

        ticket.on_drop = on_drop

    def busy(self, name: str) -> bool:
        """Whether requests of ``name`` are in the child."""
        return self._in_flight.get(name, 0) > 0

    async def _start(self) -> None:
        while True:
            started = time.monotonic()
            try:
                await self._process.start()
            except (TimeoutError, Restarting):
                _log.error("the child %s did not come up; trying again", self._process.name)
                self._process.kill()
                await asyncio.sleep(max(0.0, 1.0 - (time.monotonic() - started)))
                continue
            self._up.set()
            return

    def _died(self, status: int) -> None:
        self._up.clear()
        self.deaths += 1
        lost, self._here = sorted(self._here), set()
        self._in_flight.clear()
        _log.error(
            "the child %s died with status %d; %d models rise again on their next call",
            self._process.name,
            status,
            len(lost),
        )
        self.on_lost(lost, status)
        self.start()
