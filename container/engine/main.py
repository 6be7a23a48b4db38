"""The engine's process: puts the parts together, takes the registry over, opens the door.

    supervisor ──fd──> Marked ... Registered ... Begin      (what an earlier engine had)
    supervisor <──fd── Up, Registered, Marked, Forgotten    (what changes from here on)

Started by ``supervise``; ends with it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import uvloop

from container import collector, log
from container.archive.manifest import Manifest
from container.engine import background, devices
from container.engine.calls import Calls
from container.engine.children import ChildRunner
from container.engine.deaths import how
from container.engine.engine import Engine
from container.engine.loading import Loading
from container.engine.models import SINGLE, Registry
from container.engine.own import OwnRunner
from container.engine.quarantine import Quarantine
from container.engine.residence import Residence
from container.engine.runners import LaneRunner, OnLanes, Runner
from container.engine.tier_runner import TierRunner
from container.engine.tiered import TieredResidence
from container.errors import ServingError
from container.host.process import ChildProcess
from container.lifeline import die_with_parent
from container.memory import mapped, plan
from container.memory.keeper import Keeper
from container.memory.known import Known
from container.memory.ledger import Ledger, Tier
from container.memory.loans import Loans
from container.memory.machine import Machine
from container.memory.tokenizers import Tokenizers
from container.metrics import Metrics
from container.model import queues, resolve, watch
from container.model.dispatch import Dispatcher
from container.model.lanes import Lanes
from container.settings import BadSetting, Settings
from container.wire import frames
from container.wire import messages as m
from container.wire.server import serve

_log = log.get(__name__)
_LOADERS = 2
#: Threads that wait for copies to a device.
_MOVERS = 4


class Control:
    """The line to the supervisor: a socket, written at once and in order, read until Begin."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._reader = frames.FrameReader(frames.CONTROL)

    def take_over(self) -> tuple[list[m.Registered], list[m.Marked]]:
        """Return the registry as the supervisor has it, and the marks of offenders; blocks until Begin."""
        registered: list[m.Registered] = []
        marks: list[m.Marked] = []
        while data := self._socket.recv(1 << 16):
            for message in self._reader.feed(data):
                if isinstance(message, m.Begin):
                    return registered, marks
                if isinstance(message, m.Registered):
                    registered.append(message)
                elif isinstance(message, m.Marked):
                    marks.append(message)
        raise SystemExit("the supervisor hung up before Begin")

    def tell(self, message: m.Control) -> None:
        """Send ``message``; it is in the kernel's hands, and survives this process, when this returns."""
        self._socket.sendall(frames.encode(message))


def pick_device(wanted: str) -> str:
    """Return "cpu", "cuda:N" or "sim:..." for BERTH_DEVICE. Raises BadSetting when a wanted GPU is not there."""
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        number = int(wanted.partition(":")[2] or 0)
        if not torch.cuda.is_available() or number >= torch.cuda.device_count():
            raise BadSetting(
                f"BERTH_DEVICE={wanted}, but torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; "
                "give the container one (docker run --gpus all, an image with a CUDA build of torch), or set auto"
            )
        return f"cuda:{number}"
    return wanted if wanted.startswith("sim:") else "cpu"


def _tune(busy: int, expected_s: float) -> None:
    """Give the job of this lane its threads."""
    wanted = queues.threads(len(os.sched_getaffinity(0)), busy, expected_s)
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


class Parts:
    """The composition root: every part of one engine, made once."""

    def __init__(self, settings: Settings, tell: Callable[[m.Control], None]) -> None:
        self.device = pick_device(settings.device)
        cores = len(os.sched_getaffinity(0))
        device = devices.open_device(self.device)
        limits = devices.limits(settings, device)
        self.models = Registry()
        metrics = Metrics()
        loaders = background.threads(_LOADERS, "loader")
        page = watch.Page(settings.run_dir / "page")
        count = min(cores, 4) if device is None else 1
        compute = "cpu" if device is None else device.compute
        *slots, self.pulse = (page.slot(index, os.getpid()) for index in range(count + 2))
        dispatcher = Dispatcher(Lanes(count, _tune if compute == "cpu" else None, slots))
        marks = plan.Marks(*settings.water_marks) if settings.water_marks is not None else None
        self.keeper = Keeper(Ledger(limits), self._sink, settings.eviction, marks)
        lanes: OnLanes
        tokenizers = Tokenizers(share=settings.sharing)
        loans = Loans(self.keeper, lambda: self.residence.trim())
        if device is None:
            known = Known(self.device, allow_pickle=settings.allow_pickle, share=settings.sharing)
            sharer = background.threads(1, "sharer")
            lanes = LaneRunner(dispatcher, loaders, sharer, self.device, known, loans.room, tokenizers)
            self.residence = Residence(self.models, self.keeper, lanes)
            self.keeper.give_way = tokenizers.give_way
            free = devices.free(known, self.keeper.ledger)
        else:
            movers = ThreadPoolExecutor(_MOVERS, "mover")
            blocks = devices.blocks(settings, device, limits)
            lanes = TierRunner(dispatcher, loaders, movers, blocks, loans.room, tokenizers)
            free = devices.free_under(device, blocks)
            self.residence = TieredResidence(self.models, self.keeper, lanes)
        machine = Machine(self.keeper.ledger, free)
        self.keeper.look = machine.look
        self.calls = Calls(settings, self.models, self.keeper.ledger, self.residence, loans, metrics)
        dispatcher.lend = loans.take
        dispatcher.on_idle = self._idle
        dispatcher.on_stale = self.calls.stale
        self._run_dir, self._compute, self._page = settings.run_dir, compute, page
        self._rehearsed = device is not None and compute == "cpu"
        self._share = settings.sharing and device is None  # under one, tiers would have different segments
        self._places = itertools.cycle(range(watch.ENGINE_SLOTS, watch.SLOTS - watch.BLOCK + 1, watch.BLOCK))
        self.guests = self._child("guests", again=True)
        builders = background.threads(1, "builder")
        self.own = OwnRunner(self._child, builders, settings.state_dir / "environments", settings.state_limit)
        self.quarantine = Quarantine(
            self.models, self.residence, self.calls, tell, lambda model: self.loading.tell_of(model)
        )
        self.residence.set_apart = self.quarantine.set_apart
        self._lanes = lanes
        self.loading = Loading(
            settings, self.models, self.keeper, self.residence, self.calls, self._runner_of, loaders, tell, metrics
        )
        self.engine = Engine(
            self.device, self.models, self.keeper, loans, machine, self.residence, self.calls, self.loading, metrics,
            tokenizers,
        )  # fmt: skip
        room = ", ".join(f"{limit / 2**20:.1f} MiB on the {tier.value} tier" for tier, limit in limits.items())
        _log.info("device %s, %s, %d cores", self.device, room, cores)

    def _runner_of(self, manifest: Manifest) -> Runner:
        """Return who runs the model of ``manifest``."""
        place = resolve.place_of(manifest)
        if place == "own" or (place == "guests" and self.quarantine.needs_own_process(manifest.model_dir)):
            return self.own
        return self._lanes if place == "engine" else self.guests

    def _child(self, name: str, python: str = sys.executable, *, again: bool = False) -> ChildRunner:
        """Return the runner of a new child, not started yet; ``again``: it is started anew whenever it dies."""
        process = ChildProcess(
            name, self._run_dir, self._compute, next(self._places), python, alone=not again, rehearsed=self._rehearsed
        )
        made = ChildRunner(process, self._page, again=again, share=self._share and again)
        made.on_shared = lambda changed: self.residence.shared(changed)
        made.on_lost = lambda names, inside, status: self.quarantine.on_lost(
            names, inside, how(status), name, alone=not again
        )
        return made

    async def _sink(self, name: str, tier: Tier) -> int:
        return await self.residence.sink(name, tier)

    def _idle(self, name: str) -> None:
        model = self.models.get(name)
        if model is not None:
            self.calls.settled(model)


async def _load_first(parts: Parts, first: list[m.Registered], tell: Callable[[m.Control], None]) -> None:
    """Load what the server was started with, as many at a time as there are loaders."""
    free = asyncio.Semaphore(_LOADERS)

    async def load(entry: m.Registered) -> None:
        """Load one; what does not load is left out, with the reason in the log."""
        async with free:
            try:
                await parts.loading.load(m.Load(0, entry.name, entry.url, origin=entry.origin))
            except ServingError as error:
                if entry.name == SINGLE:  # the only one worth dying for
                    tell(m.Fatal(f"the model in {entry.origin or entry.url} does not load: {error}"))
                    await asyncio.Event().wait()  # never ready: the supervisor ends this process
                path = entry.origin or entry.url  # the log has it, callers have the name
                parts.models.left_out[entry.name] = str(error).replace(path, entry.name)

    for ended in await asyncio.gather(*(load(entry) for entry in first), return_exceptions=True):
        if ended is not None:
            _log.error("a model could not be loaded in a way nobody foresaw", exc_info=ended)
    parts.engine.started = True


async def _run(settings: Settings, control: Control) -> None:
    registered, marks = control.take_over()
    parts = Parts(settings, control.tell)
    parts.quarantine.inherit(marks)  # first: it decides where the models run
    parts.guests.start()
    for entry in registered:
        if entry.manifest:
            parts.loading.replay(entry)
    server = await serve(parts.engine, settings.run_dir / "engine.sock")
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    mapped.guard()
    collector.settle()
    control.tell(m.Up(parts.device))
    first = asyncio.get_running_loop().create_task(
        _load_first(parts, [entry for entry in registered if not entry.manifest], control.tell)
    )
    pulse = asyncio.get_running_loop().create_task(parts.pulse.beat())
    await ended.wait()
    pulse.cancel()
    first.cancel()
    server.close()
    await asyncio.gather(parts.guests.stop(), parts.own.stop())


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m container.engine.main``."""
    parser = argparse.ArgumentParser(description="The process that owns the device; started by `berth serve`.")
    parser.add_argument("--control", type=int, required=True, help="descriptor of the line to the supervisor")
    parser.add_argument("--parent", type=int, required=True, help="pid of the supervisor, with which this process ends")
    options = parser.parse_args(argv)
    die_with_parent(options.parent)
    settings = Settings.of_process()
    log.configure("engine", settings.log_level)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    control = Control(options.control)
    try:
        uvloop.run(_run(settings, control))
    except BadSetting as error:
        _log.error("%s", error)
        return os.EX_CONFIG  # the supervisor does not try again
    os._exit(0)  # lanes may be deep in a batch that nobody waits for


if __name__ == "__main__":
    sys.exit(main())
