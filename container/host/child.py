"""A host child: authors' code in a process of its own, behind the same verbs as the engine.

Started by ``host/process``; ends when the engine's connection does. It imports no torch unless an archive does.
Does not cover: which models are here, where they lie and for how long; the engine decides, by load, move and unload.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
import uvloop

from container import collector, log
from container.archive.manifest import Berth, Manifest
from container.errors import BadRequest, Failure, ModelExists, ModelNotFound, ServingError
from container.handler import Context, Weights
from container.host.output import capture_output
from container.lifeline import die_with_parent
from container.model import attempt, blame, guard, imports, opening, watch
from container.model.after_import import imported
from container.model.dispatch import Dispatcher
from container.model.lanes import Lanes
from container.model.ticket import Ticket
from container.payload import Payload
from container.settings import Settings
from container.wire import messages as m
from container.wire.api import Respond
from container.wire.server import serve

if TYPE_CHECKING:
    from container.host.alike import Book

_log = log.get(__name__)
_Result = TypeVar("_Result")

#: An archive that loads for longer counts as hung; the engine's own patience is 350 s.
LOAD_S = 345.0
#: So does one whose modules are moved for longer than a GPU's memory takes to be copied slowly.
MOVE_S = 120.0
#: What compares weights steps back behind what answers.
SHARER_NICE = 10


@dataclass(slots=True)
class _Guest:
    """A loaded archive. up: it is on the device, and takes requests; else it lies in RAM.

    moving: held by whoever moves it. item_s: what a request of it took when it was lowered. calls: requests so far.
    """

    opened: opening.Opened
    url: str
    settings: Berth
    up: bool = True
    moving: asyncio.Lock = field(default_factory=asyncio.Lock)
    item_s: float | None = None
    calls: int = 0


class Child:
    """The Service of one host child."""

    def __init__(self, device: str, lanes: int, slots: list[watch.Slot], *, rehearsed: bool = False) -> None:
        self._device = device
        self._rehearsed = rehearsed
        self._dispatcher = Dispatcher(Lanes(lanes, slots=slots[: lanes + 1]))
        self._loading = slots[lanes + 1]
        self._guests: dict[str, _Guest] = {}
        self._tickets: dict[tuple[Respond, int], Ticket] = {}
        #: One loader: aliases in sys.modules and the pip guard are process-wide while an archive loads.
        self._loader = ThreadPoolExecutor(1, "loader")
        self._sharer = ThreadPoolExecutor(1, "sharer", os.nice, (SHARER_NICE,))
        #: Held while weights are compared and moved, which is one model's turn at a time.
        self._comparing = asyncio.Lock()
        self._book: Book | None = None

    def invoke(self, request: m.Invoke, respond: Respond) -> None:
        """Queue the request; a name that is not here is ModelNotFound."""
        guest = self._guests.get(request.model)
        if guest is None or not guest.up:
            missing = ModelNotFound(f"model {request.model!r} is not up in this process")
            respond(m.Answer(request.id, missing.to_failure()))
            return
        guest.calls += 1
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
        device = opening.Device(rehearsed=self._rehearsed, keep=request.keep)
        work = functools.partial(opening.open_model, manifest, context, device)
        opened = await self._inside(request.name, LOAD_S, work)
        guest = self._guests[request.name] = _Guest(opened, request.url, manifest.settings)
        self._accept(request.name, guest)
        movable = opened.adopted.bytes if opened.adopted is not None and request.keep else 0
        return m.Loaded(request.id, opened.bytes, opened.times_ms, opening.example_of(opened.handler), movable)

    def _accept(self, name: str, guest: _Guest) -> None:
        """Take requests for ``guest`` from here on."""
        settings = guest.settings
        batch, handler = settings.batch, guest.opened.handler
        self._dispatcher.open(
            name, handler, batch.max_size, batch.max_delay_ms, settings.timeout_s, item_s=guest.item_s
        )

    async def attach(self, request: m.Attach, respond: Respond) -> m.Loaded:
        """Refuse: only the engine's models are attached to."""
        raise BadRequest("models are attached to at the engine, not in the process of their code")

    async def _inside(self, name: str, allowed_s: float, work: Callable[[], _Result]) -> _Result:
        """Return what ``work`` does to model ``name`` on the loader thread, ended by the supervisor if it hangs."""

        def watched() -> _Result:
            """Do it where the supervisor can see it."""
            self._loading.enter("load", name, allowed_s)
            try:
                with log.bind(model=name):
                    return work()
            finally:
                self._loading.leave()

        return await asyncio.get_running_loop().run_in_executor(self._loader, watched)

    async def move(self, request: m.Move) -> m.Loaded:
        """Lower, lift, or forget the copy of a model that was loaded as movable. Raises what the device does."""
        name, guest = request.name, self._guests.get(request.name)
        if guest is None or guest.opened.adopted is None:
            raise ModelNotFound(f"model {name!r} is not in this process, or cannot be moved")
        adopted = guest.opened.adopted
        async with guest.moving:
            if self._guests.get(name) is not guest:
                raise ModelNotFound(f"model {name!r} was unloaded before it was moved")
            started = time.perf_counter()
            if request.verb == "forget":  # which touches nothing that runs, and need not wait behind a load
                await asyncio.get_running_loop().run_in_executor(None, adopted.forget)
            elif request.verb == "lower" and not adopted.in_ram:
                await self._rest(name)
                if guest.up:
                    guest.up, guest.item_s = False, self._dispatcher.close(name)
                await self._moved(name, adopted.lower)
            elif request.verb == "lift" and not guest.up:
                await self._moved(name, adopted.lift)
                guest.up = True
                self._accept(name, guest)
            took_ms = round((time.perf_counter() - started) * 1e3, 3)
        return m.Loaded(request.id, guest.opened.bytes, {request.verb: took_ms})

    async def _moved(self, name: str, work: Callable[[], None]) -> None:
        """Move on the loader thread. Raises OutOfMemory, LoadFailed."""
        failed = await self._inside(name, MOVE_S, functools.partial(attempt.call, blame.while_loading, work))
        if failed is not None:
            attempt.log_cause(failed, name, "move")
            raise failed from None  # its frames hold tensors

    async def _rest(self, name: str) -> None:
        """Return when nothing of ``name`` runs."""
        while self._dispatcher.busy(name):
            await asyncio.sleep(0.005)

    async def share(self, request: m.Share) -> m.Shared:
        """Keep what the model has in common with others here once, as far as it can be done now.

        Nothing waits for it: who is asked to answer meanwhile does, and then nothing is moved.
        """
        guest = self._guests.get(request.name)
        if imported("torch") is None:
            return m.Shared(request.id)
        async with self._comparing:
            if guest is None or self._guests.get(request.name) is not guest:
                raise ModelNotFound(f"model {request.name!r} is not in this process")
            loop = asyncio.get_running_loop()
            if self._book is None:
                self._book = await loop.run_in_executor(self._sharer, _open_book)
            self._book.enrol(request.name, guest.opened.everything, guest.opened.bytes, guest.settings.salt)
            resting = self._resting(self._guests)
            found = await loop.run_in_executor(self._sharer, self._book.compare, request.name, resting.keys())
            still = self._resting(found.models)
            undisturbed = all(still.get(name) == resting[name] for name in found.models)
            cuts = self._book.carry_out(found) if undisturbed else None
            # Within the lock: it is told before one of these models can go and come again.
            await loop.run_in_executor(self._sharer, self._book.tidy, found)
        parts = {part.number: part.bytes for cut in (cuts or {}).values() for part in cut.parts}
        told = [m.Cut(name, own, [part.number for part in shared]) for name, (own, shared) in (cuts or {}).items()]
        return m.Shared(request.id, told, parts, found.waits or cuts is None)

    def _resting(self, names: Collection[str]) -> dict[str, tuple[int, int]]:
        """Return those of ``names`` that are here and of which nothing waits or runs: who they are, and their calls."""
        guests = {name: self._guests[name] for name in names if name in self._guests}
        return {name: (id(guest), guest.calls) for name, guest in guests.items() if not self._dispatcher.busy(name)}

    async def unload(self, request: m.Unload) -> m.Unloaded:
        """Wait until nothing of the model runs, then drop it."""
        guest = self._guests.pop(request.name, None)
        if guest is None:
            raise ModelNotFound(f"model {request.name!r} is not in this process")
        async with guest.moving:
            await self._rest(request.name)
            self._dispatcher.close(request.name)
            async with self._comparing:  # which has weights of it in hand
                if self._book is not None:
                    self._book.forget(request.name)
            await asyncio.get_running_loop().run_in_executor(self._loader, guest.opened.close)
        return m.Unloaded(request.id, guest.opened.bytes)

    async def list(self, request: m.List) -> m.Page:
        """Return all guests; paging is the engine's business."""
        return m.Page(request.id, [m.Entry(name, guest.url) for name, guest in sorted(self._guests.items())])

    async def describe(self, request: m.Describe) -> m.Description:
        """Return what is known of one guest."""
        guest = self._guests.get(request.name)
        if guest is None:
            raise ModelNotFound(f"model {request.name!r} is not in this process")
        tier = "device" if guest.up else "host"
        return m.Description(request.id, request.name, guest.url, "ready", tier, guest.opened.bytes)

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


def _open_book() -> Book:
    from container.host.alike import Book  # torch, which this process has only if an archive needs it

    return Book()


def _opener(device: str) -> Callable[[Path], Weights] | None:
    """How built-in networks get their weights here: on a GPU onto it, else as they read them themselves."""
    if device == "cpu":
        return None

    def open_weights(folder: Path) -> Weights:
        """Return the tensors of the checkpoint under ``folder``, on the device."""
        from container.nets import checkpoint  # torch, which this process has only if an archive needs it

        return {name: tensor.to(device) for name, tensor in checkpoint.read(folder).items()}

    return open_weights


async def _run(options: argparse.Namespace, slots: list[watch.Slot]) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    child = Child(options.device, options.lanes, slots, rehearsed=options.rehearsed)
    server = await serve(child, options.socket)
    _log.info("%s is up", options.name)
    pulse = loop.create_task(slots[options.lanes + 2].beat())
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
    parser.add_argument("--rehearsed", action="store_true", help="the CPU stands for a device with memory of its own")
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
        uvloop.run(_run(options, slots))
    except ServingError as error:
        _log.error("%s", error)
        return 1
    # Threads of authors' libraries may not end by themselves; nothing is left to save here.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
