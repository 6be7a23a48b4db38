"""Models that have a host child to themselves."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from container.archive.manifest import Manifest
from container.engine.children import ChildRunner
from container.engine.runners import Up
from container.host import venv
from container.memory import probe, sizes
from container.memory.ledger import Segment
from container.model import blame
from container.model.ticket import Ticket


class OwnRunner:
    """A child for each model: archives with requirements, with ``isolation: own``, and repeated offenders.

    Its bytes are those of the whole process, and sinking ends it, so they are certain to come back. Nothing of it is
    lowered: the process and its CUDA context, which are what such a model mostly takes, would stay.
    """

    def __init__(
        self,
        make: Callable[[str, str], ChildRunner],
        builders: Executor,
        envs: Path,
        envs_limit_bytes: int,
    ) -> None:
        self._make = make
        self._builders = builders
        self._envs = envs
        self._envs_limit_bytes = envs_limit_bytes
        self._children: dict[str, ChildRunner] = {}

    def prepare(self, name: str, manifest: Manifest, known_bytes: int) -> list[Segment]:
        """See Runner: the weight files, until the process has been measured."""
        return [Segment(name, known_bytes or sizes.folder_bytes(Path(manifest.model_dir)))]

    def again(self, name: str) -> list[Segment] | None:
        """See Runner: what authors' code made is made anew."""
        return None

    async def bring_up(self, name: str, manifest: Manifest) -> Up:
        """Build the environment if one is asked for, start the process, load, measure all of it."""
        python, started = sys.executable, time.perf_counter()
        if manifest.requirements:
            work = functools.partial(venv.ensure, Path(manifest.requirements), self._envs, self._envs_limit_bytes)
            try:
                python = await asyncio.get_running_loop().run_in_executor(self._builders, work)
            except OSError as error:  # a full disk is want of room, and no fault of the archive
                raise blame.while_loading(error) from error
        built_ms = (time.perf_counter() - started) * 1e3
        await self.put_down(name)
        child = self._children[name] = self._make(f"own-{hashlib.sha256(name.encode()).hexdigest()[:12]}", python)
        child.start()
        up = await child.bring_up(name, manifest)
        nbytes = max(up.segments[0].bytes, probe.process_bytes(child.pid) if child.pid is not None else 0)
        times_ms = {"environment": round(built_ms, 3), **up.times_ms}
        return up._replace(segments=[Segment(name, nbytes)], times_ms=times_ms)

    async def join(self, name: str) -> dict[str, list[Segment]]:
        """See Runner: nobody else is in the process."""
        return {}

    async def put_down(self, name: str, *, keep: bool = False) -> None:
        """End the process of ``name``."""
        child = self._children.pop(name, None)
        if child is not None:
            await child.stop()

    async def settle(self) -> None:
        """See Runner: nothing is."""

    def submit(self, name: str, ticket: Ticket) -> None:
        """Send to the model's child."""
        self._children[name].submit(name, ticket)

    def up(self, name: str) -> bool:
        """Whether the model's child can be reached."""
        child = self._children.get(name)
        return child is not None and child.up(name)

    def busy(self, name: str) -> bool:
        """Whether requests of ``name`` are in its child."""
        child = self._children.get(name)
        return child is not None and child.busy(name)

    async def stop(self) -> None:
        """End all of them."""
        children, self._children = list(self._children.values()), {}
        await asyncio.gather(*(child.stop() for child in children))
