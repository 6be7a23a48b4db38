"""Where a model runs: on the engine's own lanes (our handlers), or in a host child (authors' code).

A runner brings a model up, takes its requests, and puts it down; it decides nothing.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol

from container import log
from container.archive.manifest import Manifest
from container.handler import Context, Weights
from container.memory import sizes
from container.model import pipeline
from container.model.dispatch import Dispatcher, Ticket
from container.wire import messages as m


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
        self._dispatcher.open(name, opened.handler, batch.max_size, batch.max_delay_ms, manifest.settings.timeout_s)
        return m.Loaded(0, opened.bytes, opened.times_ms, pipeline.example_of(opened.handler))

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
