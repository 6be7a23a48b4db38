"""A host child: authors' code in a process of its own, behind the same verbs as the engine.

Started by ``host/process``; ends when the engine's connection does. It imports no torch unless an archive does.
Does not cover: which models are here and for how long; the engine decides, by load and unload.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvloop

from container import collector, log
from container.archive.manifest import Manifest
from container.errors import BadRequest, Failure, ModelExists, ModelNotFound, ServingError
from container.handler import Context, Weights
from container.host.output import capture_output
from container.lifeline import die_with_parent
from container.model import guard, imports, opening, watch
from container.model.dispatch import Dispatcher
from container.model.lanes import Lanes
from container.model.ticket import Ticket
from container.payload import Payload
from container.settings import Settings
from container.wire import messages as m
from container.wire.api import Respond
from container.wire.server import serve

_log = log.get(__name__)

#: An archive that loads for longer counts as hung; the engine's own patience is 350 s.
LOAD_S = 345.0


@dataclass(slots=True)
class _Guest:
    """A loaded archive."""

    opened: opening.Opened
    url: str


class Child:
    """The Service of one host child."""

    def __init__(self, device: str, lanes: int, slots: list[watch.Slot]) -> None:
        self._device = device
        self._dispatcher = Dispatcher(Lanes(lanes, slots=slots[: lanes + 1]))
        self._loading = slots[lanes + 1]
        self._guests: dict[str, _Guest] = {}
        self._tickets: dict[tuple[Respond, int], Ticket] = {}
        #: One loader: aliases in sys.modules and the pip guard are process-wide while an archive loads.
        self._loader = ThreadPoolExecutor(1, "loader")

    def invoke(self, request: m.Invoke, respond: Respond) -> None:
        """Queue the request; a name that is not here is ModelNotFound."""
        if request.model not in self._guests:
            missing = ModelNotFound(f"model {request.model!r} is not in this process")
            respond(m.Answer(request.id, missing.to_failure()))
            return
        key = (respond, request.id)

        def settle(result: Payload | Failure) -> None:
            """Answer the engine."""
            self._tickets.pop(key, None)
            respond(m.Answer(request.id, result))

        ticket = self._tickets[key] = Ticket(request.payload, settle, time.monotonic(), most=request.most)
        if request.stream:
            ticket.part = lambda piece: respond(m.Chunk(request.id, piece))
        self._dispatcher.submit(request.model, ticket)

    def cancel(self, request_id: int, respond: Respond) -> None:
        """Forget a request; one that runs ends at its next step if nobody else waits for its batch."""
        ticket = self._tickets.pop((respond, request_id), None)
        if ticket is not None:
            ticket.drop()

    def gone(self, respond: Respond) -> None:
        """End the process: without its engine it is of no use."""
        _log.info("the engine has hung up; ending")
        os.kill(os.getpid(), signal.SIGTERM)

    def counts(self, counts: m.Counts) -> None:
        """Ignore: only fronts count."""

    async def load(self, request: m.Load) -> m.Loaded:
        """Import and load the archive described by ``request.manifest``."""
        if request.name in self._guests:
            raise ModelExists(f"model {request.name!r} is already in this process")
        manifest = msgspec.msgpack.decode(request.manifest, type=Manifest)
        context = Context(
            request.name,
            self._device,
            manifest.settings.options,
            _opener(self._device),
            properties={
                "model_dir": manifest.model_dir,
                "gpu_id": self._device.partition(":")[2] or None,
                "batch_size": manifest.settings.batch.max_size,
                "server_name": "berth",
            },
        )
        work = functools.partial(self._open, manifest, context)
        opened = await asyncio.get_running_loop().run_in_executor(self._loader, work)
        self._guests[request.name] = _Guest(opened, request.url)
        batch = manifest.settings.batch
        self._dispatcher.open(
            request.name, opened.handler, batch.max_size, batch.max_delay_ms, manifest.settings.timeout_s
        )
        return m.Loaded(request.id, opened.bytes, opened.times_ms, opening.example_of(opened.handler))

    async def attach(self, request: m.Attach, respond: Respond) -> m.Loaded:
        """Refuse: only the engine's models are attached to."""
        raise BadRequest("models are attached to at the engine, not in the process of their code")

    def _open(self, manifest: Manifest, context: Context) -> opening.Opened:
        self._loading.enter("load", context.name, LOAD_S)
        try:
            with log.bind(model=context.name):
                return opening.open_model(manifest, context)
        finally:
            self._loading.leave()

    async def unload(self, request: m.Unload) -> m.Unloaded:
        """Wait until nothing of the model runs, then drop it."""
        guest = self._guests.pop(request.name, None)
        if guest is None:
            raise ModelNotFound(f"model {request.name!r} is not in this process")
        while self._dispatcher.busy(request.name):
            await asyncio.sleep(0.005)
        self._dispatcher.close(request.name)
        freed = guest.opened.bytes
        await asyncio.get_running_loop().run_in_executor(self._loader, guest.opened.close)
        return m.Unloaded(request.id, freed)

    async def list(self, request: m.List) -> m.Page:
        """Return all guests; paging is the engine's business."""
        return m.Page(request.id, [m.Entry(name, guest.url) for name, guest in sorted(self._guests.items())])

    async def describe(self, request: m.Describe) -> m.Description:
        """Return what is known of one guest."""
        guest = self._guests.get(request.name)
        if guest is None:
            raise ModelNotFound(f"model {request.name!r} is not in this process")
        return m.Description(request.id, request.name, guest.url, "ready", "device", guest.opened.bytes)

    async def ready(self, request: m.Ready) -> m.Status:
        """Return that the process is up."""
        return m.Status(request.id, "ready", self._device, os.getpid())

    async def stats(self, request: m.Stats) -> m.Figures:
        """Return nothing: the engine sees every request itself."""
        return m.Figures(request.id, [])

    async def drain(self, request: m.Drain) -> m.Status:
        """Return when nothing runs."""
        while any(self._dispatcher.busy(name) for name in self._guests):
            await asyncio.sleep(0.01)
        return m.Status(request.id, "drained", self._device, os.getpid())


def _opener(device: str) -> Callable[[Path], Weights] | None:
    """How built-in networks get their weights here: on a GPU onto it, else as they read them themselves."""
    if device == "cpu":
        return None

    def open_weights(folder: Path) -> Weights:
        """Return the tensors of the checkpoint under ``folder``, on the device."""
        from container.nets import checkpoint  # torch, which this process has only if an archive needs it

        return {name: tensor.to(device) for name, tensor in checkpoint.read(folder).items()}

    return open_weights


async def _run(socket: Path, child_name: str, device: str, lanes: int, slots: list[watch.Slot]) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    server = await serve(Child(device, lanes, slots), socket)
    _log.info("%s is up", child_name)
    pulse = loop.create_task(slots[lanes + 2].beat())
    await ended.wait()
    pulse.cancel()
    server.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m container.host.child``."""
    parser = argparse.ArgumentParser(description="A process for archives' own code; started by the engine.")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--parent", type=int, required=True, help="pid of the engine, with which this process ends")
    parser.add_argument("--name", default="guests", help="name in log lines")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--lanes", type=int, default=2, help="threads that run handlers")
    parser.add_argument("--page", type=Path, required=True, help="the page that the supervisor watches")
    parser.add_argument("--first-slot", type=int, required=True, help="this process's first place on it")
    parser.add_argument("--alone", action="store_true", help="one archive has this process for itself")
    options = parser.parse_args(argv)
    die_with_parent(options.parent)
    log.configure(options.name, Settings.of_process().log_level)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    capture_output()
    guard.take_baseline()
    collector.settle(ours=False)
    if options.alone:
        imports.live_alone()
    page = watch.Page(options.page)
    slots = [page.slot(options.first_slot + index, os.getpid()) for index in range(watch.BLOCK)]
    try:
        uvloop.run(_run(options.socket, options.name, options.device, options.lanes, slots))
    except ServingError as error:
        _log.error("%s", error)
        return 1
    # Threads of authors' libraries may not end by themselves; nothing is left to save here.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
