"""Models come and go: load and unload, the registry told to the supervisor, failures remembered for a while.

A load ends READY or raises and leaves nothing behind: the name is unknown, the bytes are back.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import msgspec

from container import log
from container.archive import describe, policy, tree
from container.archive.manifest import Manifest
from container.engine.calls import Calls
from container.engine.failures import Failures
from container.engine.lifecycle import Life, Residency
from container.engine.models import SINGLE, Model, Registry, check_name
from container.engine.residence import Residence
from container.engine.runners import Runner
from container.errors import (
    BadModelPath,
    Draining,
    Internal,
    ModelExists,
    ModelMissing,
    ModelNotFound,
    ServingError,
)
from container.memory.keeper import Keeper
from container.memory.ledger import Segment
from container.memory.machine import check_disk
from container.metrics import Metrics
from container.model import blame
from container.settings import Settings
from container.wire import messages as m

_log = log.get(__name__)

#: A load gives up before the platform does (360 s, contract.md 2.3); a drain is what DELETE waits for at most.
LOAD_S = 350.0
DRAIN_S = 60.0


class _Found(NamedTuple):
    """A folder as it is now."""

    manifest: Manifest
    runner: Runner
    stamp: bytes
    segments: list[Segment]


class Loading:
    """Load and unload. ``tell`` reports changes of the registry to the supervisor, before callers know of them."""

    def __init__(
        self,
        settings: Settings,
        models: Registry,
        keeper: Keeper,
        residence: Residence,
        calls: Calls,
        runners: Callable[[Manifest], Runner],
        loaders: Executor,
        tell: Callable[[m.Control], None],
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._models = models
        self._keeper = keeper
        self._residence = residence
        self._calls = calls
        self._runners = runners
        self._loaders = loaders
        self._tell = tell
        self._metrics = metrics
        residence.look, residence.is_as_it_was = self.look, self.is_as_it_was
        self._failures = Failures()
        self._unpacked: dict[str, str] = {}

    async def load(self, request: m.Load, *, kept: bool = True) -> m.Loaded:
        """Register ``request.name`` and bring it up; a failure leaves nothing behind.

        kept: the supervisor is told, so that a new engine has the model, too. Must not be cancelled.
        """
        check_name(request.name)
        url, origin = self._whence(request)
        folder = self._folder(url)
        await self._free_name(request.name)
        memory_key = (url, _newest_mtime_ns(folder))
        self._failures.recall(memory_key, time.monotonic())
        if self._calls.draining:
            raise Draining("the server is shutting down", retry_after_s=5.0)
        check_disk(folder)
        model = Model(request.name, url, kept=kept, origin=origin)
        model.loading = asyncio.get_running_loop().create_future()
        model.live("load")
        self._models.add(model)
        started = time.monotonic()
        try:
            await self._bring_in(model)
        except BaseException as error:
            told = error if isinstance(error, ServingError) else Internal(Internal.TEXT)
            if origin:
                told.message = told.message.replace(url, origin)
                told.args = (told.message,)
            self._forget_failed(model, told, memory_key)
            raise
        model.loading.set_result(None)
        model.loading = None
        if model.waiting:
            self._calls.want(model)
        nbytes = self._keeper.ledger.bytes(model.name)
        took_s = time.monotonic() - started
        self._metrics.observe("berth_load_seconds", took_s)
        _log.info(
            "loaded %s (%s, %d bytes) in %.0f ms %s", model.name, model.kind, nbytes, took_s * 1e3, model.times_ms
        )
        return m.Loaded(request.id, nbytes, model.times_ms, model.example)

    def _whence(self, request: m.Load) -> tuple[str, str]:
        """Return the folder to load from, and the archive it was unpacked from when the server started, if it was.

        Such an archive's path does as a url, too: it is what GET /models says.
        """
        if request.origin:
            self._unpacked[request.origin] = request.url
            return request.url, request.origin
        url = self._unpacked.get(request.url, "")
        return (url, request.url) if url else (request.url, "")

    async def _bring_in(self, model: Model) -> None:
        """ABSENT to READY, with the supervisor told last."""
        await self._residence.rise(model, time.monotonic() + LOAD_S)
        model.live("loaded")
        model.live("measured")
        self.tell_of(model)

    def tell_of(self, model: Model) -> None:
        """Tell the supervisor how ``model`` is now, for the next engine."""
        if model.kept:
            manifest = msgspec.msgpack.encode(model.manifest)
            told = m.Registered(model.name, model.url, manifest, self._bytes(model), model.deaths, model.reason)
            self._tell(msgspec.structs.replace(told, origin=model.origin))

    async def look(self, model: Model) -> None:
        """Read the folder of ``model`` as it is now: its manifest, where it runs, what it will take.

        Before each rise, for what lies on the disk may be other files than the last time. Raises ServingError.
        """
        known_bytes = self._bytes(model)
        work = functools.partial(self._read, model, known_bytes)
        reading = asyncio.get_running_loop().run_in_executor(self._loaders, work)
        try:
            found = await asyncio.shield(reading)
        except asyncio.CancelledError:
            await asyncio.wait([reading])  # what it opens is closed by who cancelled, so not before it is open
            raise
        changed = model.manifest is not None and not _alike(found.manifest, model.manifest)
        if model.runner is not None and model.runner is not found.runner:
            await model.runner.put_down(model.name)
        model.manifest, model.runner, model.stamp = found.manifest, found.runner, found.stamp
        self._register(model, found.segments)
        if changed and model.life is Life.READY:
            _log.info("the files of %s were changed since it was last up; it is described anew", model.name)
            self.tell_of(model)

    async def is_as_it_was(self, model: Model) -> bool:
        """Whether the folder of ``model`` is as it was when ``look`` last read it."""
        url = model.url.removeprefix("file://")
        return model.stamp != b"" and model.stamp == await asyncio.get_running_loop().run_in_executor(
            self._loaders, tree.stamp, url
        )

    def _read(self, model: Model, known_bytes: int) -> _Found:
        """Describe and prepare, unless the folder is as it was and the model has been kept; on a loader thread."""
        try:
            stamp = tree.stamp(model.url.removeprefix("file://"))
            if stamp and stamp == model.stamp and model.manifest is not None and model.runner is not None:
                segments = model.runner.again(model.name)
                if segments is not None:
                    return _Found(model.manifest, model.runner, stamp, segments)
            return self._anew(model, stamp, known_bytes)
        except (OSError, MemoryError, RuntimeError) as error:  # files that vanish or cannot be mapped
            raise blame.while_loading(error) from error

    def _anew(self, model: Model, stamp: bytes, known_bytes: int) -> _Found:
        """Describe and prepare as if it had never been up."""
        folder = self._folder(model.url)
        hf_task = self._settings.hf_task if model.name == SINGLE else ""
        told = {"program": self._settings.program, "hf_task": hf_task, "service": self._settings.service}
        manifest = describe.describe(folder, **told)
        if manifest != model.manifest:
            policy.check(folder, manifest, self._settings)
        runner = model.runner
        if runner is None or model.manifest is None or not _alike(manifest, model.manifest):
            runner, known_bytes = self._runners(manifest), 0
        return _Found(manifest, runner, stamp, runner.prepare(model.name, manifest, known_bytes))

    def _register(self, model: Model, segments: list[Segment]) -> None:
        assert model.manifest is not None
        ledger, pinned = self._keeper.ledger, model.manifest.settings.pin
        if model.name not in ledger:
            ledger.add(model.name, segments, pinned=pinned, at=time.monotonic())
            return
        ledger.recut(model.name, segments)
        (ledger.pin if pinned else ledger.unpin)(model.name)

    def _bytes(self, model: Model) -> int:
        return self._keeper.ledger.bytes(model.name) if model.name in self._keeper.ledger else 0

    def replay(self, registered: m.Registered) -> None:
        """Take in a model that an earlier engine had: known at once, on disk, up on its next call if not kept out."""
        model = Model(registered.name, registered.url, origin=registered.origin)
        if model.origin:
            self._unpacked[model.origin] = model.url
        model.manifest = msgspec.msgpack.decode(registered.manifest, type=Manifest)
        model.runner = self._runners(model.manifest)
        self._register(model, [Segment(model.name, registered.size_bytes)])
        model.live("load")
        model.live("loaded")
        model.live("measured")
        model.deaths = registered.deaths
        self._models.add(model)
        if registered.reason:
            model.live("quarantine")
            model.reason = registered.reason

    def _folder(self, url: str) -> Path:
        """Return the folder of ``url``. Raises BadModelPath or ModelMissing."""
        roots = [Path(os.path.realpath(root)) for root in self._settings.models_roots]
        folder = real_path(url)
        if folder is None or not any(root in (folder, *folder.parents) for root in roots):
            raise BadModelPath(
                f"url {url[:200]!r} is not under a folder that models may be loaded from: `models` and `model` in the "
                "folder that SAGEMAKER_BASE_DIR names, or the folder of `berth serve --models`"
            )
        if not folder.is_dir():
            raise ModelMissing(f"url {url[:200]!r}: there is no such folder; it must hold the extracted archive")
        return folder

    async def _free_name(self, name: str) -> None:
        """Return once ``name`` is free. Raises ModelExists, or the failure of a load that was under way."""
        while (there := self._models.get(name)) is not None:
            if there.loading is not None:
                await asyncio.shield(there.loading)
            elif there.life in (Life.DRAINING, Life.LEAVING, Life.FAILED):
                await asyncio.sleep(0.01)
            else:
                raise ModelExists(f"model {name!r} is already registered; DELETE /models/{name} first to replace it")

    def _forget_failed(self, model: Model, error: ServingError, key: tuple[str, int]) -> None:
        _log.error("model %s is not loaded: %s: %s", model.name, error.code, error)
        self._failures.remember(key, error, time.monotonic())
        assert model.loading is not None
        model.loading.set_exception(error)
        model.loading.exception()  # nobody may be waiting for it
        self._calls.fail_waiting(model, error)
        model.live("failed")
        self._remove(model)

    def _remove(self, model: Model) -> None:
        if model.name in self._keeper.ledger:
            self._keeper.ledger.drop(model.name)
        model.live("gone")
        self._models.remove(model.name)
        self._metrics.forget(model=model.name)
        self._keeper.changed()

    async def unload(self, request: m.Unload) -> m.Unloaded:
        """Drain ``request.name``, free its bytes, forget it."""
        model = self._models.get(request.name)
        if model is not None and model.loading is not None:
            await asyncio.wait([model.loading])
            model = self._models.get(request.name)
        if model is None or model.life not in (Life.READY, Life.QUARANTINED):
            raise ModelNotFound(f"no model {request.name!r} is registered, so there is nothing to unload")
        model.live("unload")
        self._tell(m.Forgotten(model.name))
        deadline_s = time.monotonic() + DRAIN_S
        while model.busy and time.monotonic() < deadline_s:
            await asyncio.sleep(0.005)
        model.live("expired" if model.busy else "idle")
        self._calls.fail_waiting(model, Draining(f"model {model.name!r} was unloaded while the request waited"))
        if model.rising is not None:
            model.rising.cancel()
            await asyncio.wait([model.rising])
        while model.residency in (Residency.RISING, Residency.SINKING):
            await asyncio.sleep(0.005)
        self._residence.unhold(model)
        freed = await self._residence.leave(model.name)
        if model.runner is not None:
            await model.runner.put_down(model.name)
            await model.runner.settle()
        self._remove(model)
        _log.info("unloaded %s, %d bytes are back", model.name, freed)
        return m.Unloaded(request.id, freed)


def real_path(url: str) -> Path | None:
    """Return where ``url`` leads once every link is followed, None if it leads nowhere that may be looked at."""
    if "\0" in url:
        return None
    try:
        return Path(os.path.realpath(url.removeprefix("file://")))
    except OSError:  # a link that this user may not read, as those under /proc
        return None


def _alike(one: Manifest, other: Manifest) -> bool:
    """Whether two manifests differ in nothing but times: what was measured of the one holds for the other."""
    return msgspec.structs.replace(one, identity=other.identity) == other


def _newest_mtime_ns(folder: Path) -> int:
    """Return the newest change under ``folder``: what tells a mended archive from the one that failed."""
    return max((entry.lstat().st_mtime_ns for entry in [folder, *folder.rglob("*")]), default=0)
