"""Models that run in a host child: the one that guests share, or one that a model has for itself (``own``).

bring_up ──> lower <──> lift      what can be moved; the rest is put down when it sinks, and loaded when it rises
         └─> forget_copy
         └─> join               on a machine without a device: equal weights are kept once, in the child
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from container import log
from container.archive.manifest import Manifest
from container.engine.cuts import BadCut, Cuts
from container.engine.deaths import how, out_of_memory, while_answering, while_loading
from container.engine.runners import Up
from container.errors import Failure, Restarting, ServingError
from container.host.process import ChildProcess
from container.memory import sizes
from container.memory.ledger import Segment
from container.model import watch
from container.model.ticket import Ticket
from container.payload import Payload
from container.wire import messages as m
from container.wire.client import GONE, Client

_log = log.get(__name__)

#: A child that is not up by then will not be.
_UP_S = 30.0
_RETRY_S = 1.0
_NOTICE_S = 2.0
#: When it is tried again to share with a model that was at work: ten times within a minute and a half, then no more.
_SHARE_AGAIN_S = tuple(0.1 * 2**tried for tried in range(10))


class ChildRunner:
    """One host child and the models in it.

    again: started again whenever it dies. share: its models share equal weights. ``on_lost`` is called after a death,
    when all requests in flight have failed, with the models that were up, those whose code it died in, and the status.
    """

    def __init__(self, process: ChildProcess, page: watch.Page, *, again: bool, share: bool = False) -> None:
        self._process = process
        self._page = page
        self._again = again
        self._here: dict[str, int] = {}  # the bytes that were measured
        self._lives = itertools.count(1)
        self._cuts: Cuts | None = Cuts(f"{process.name}:{next(self._lives)}") if share else None
        self._sharing: set[asyncio.Task[None]] = set()
        #: Loads under way in the child, which cannot stop one: they go on when nobody waits for them any more.
        self._loading: dict[str, asyncio.Task[m.Loaded]] = {}
        self._in_flight: dict[str, int] = {}
        self._up = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self._blamed: dict[str, ServingError] = {}
        #: Requests whose connection broke: their answer waits for the cause of the death.
        self._fallen: list[tuple[str, Callable[[Payload | Failure], None]]] = []
        self._patience: asyncio.TimerHandle | None = None
        self.on_lost: Callable[[list[str], list[watch.Inside], int], None] = lambda names, inside, status: None
        #: Called with the segments of models that were found to share something after ``join`` had returned.
        self.on_shared: Callable[[dict[str, list[Segment]]], None] = lambda changed: None
        process.on_death = self._died

    def start(self) -> None:
        """Start the child in the background; whoever needs it waits."""
        self._starting = asyncio.get_running_loop().create_task(self._start())

    async def stop(self) -> None:
        """End the child."""
        for task in (self._starting, *self._sharing):
            if task is not None:
                task.cancel()
        pid = self._process.pid
        self._up.clear()
        await self._process.stop()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        self._answer_fallen({})
        if pid is not None:
            self._page.clear(pid)

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._process.pid

    def prepare(self, name: str, manifest: Manifest, known_bytes: int) -> list[Segment]:
        """See Runner: the weight files, until what the code makes of them has been measured."""
        return [Segment(name, known_bytes or sizes.folder_bytes(Path(manifest.model_dir)))]

    def again(self, name: str) -> list[Segment] | None:
        """See Runner: what authors' code made is made anew."""
        return None

    async def bring_up(self, name: str, manifest: Manifest, *, keep: bool = False) -> Up:
        """Load in the child; one that dies of something else meanwhile is worth another try.

        keep: what is moved to the device may keep its copy in RAM. Who cancels this has to ``put_down`` the model: the
        load goes on.
        """
        request = m.Load(0, name, manifest.model_dir, msgspec.msgpack.encode(manifest), keep=keep)
        self._blamed.pop(name, None)
        for last in (False, True):
            try:
                async with asyncio.timeout(_UP_S):
                    await self._up.wait()
            except TimeoutError:
                raise Restarting("the process for this model's code does not come up", retry_after_s=5.0) from None
            client = self._process.client
            try:
                if client is not None:
                    self._loading[name] = asyncio.get_running_loop().create_task(self._load(client, request))
                    loaded = await asyncio.shield(self._loading[name])
                    del self._loading[name]
                    if name not in self._here:
                        raise Restarting("the process died when the model had just come up", retry_after_s=1.0)
                    segments, movable = [Segment(name, loaded.bytes)], keep and loaded.movable_bytes > 0
                    return Up(segments, loaded.times_ms, loaded.example, movable)
            except Restarting:
                if name in self._blamed:
                    raise self._blamed.pop(name) from None
                if last or not self._again:
                    raise
        raise Restarting("the process for this model's code died twice while it was loading", retry_after_s=5.0)

    async def _load(self, client: Client, request: m.Load) -> m.Loaded:
        """Load in the child that ``client`` talks to; Restarting comes once its death has been noticed."""
        try:
            loaded = await client.call(request)
        except Restarting:
            await self._until_death_is_noticed()
            raise
        assert isinstance(loaded, m.Loaded), loaded
        if self._process.client is client:
            self._here[request.name] = loaded.bytes
        return loaded

    async def join(self, name: str) -> dict[str, list[Segment]]:
        """See Runner. One look; with models that are at work now it is tried again in the background."""
        changed, waits = await self._share(name)
        if waits:
            task = asyncio.get_running_loop().create_task(self._share_later(name, self._process.client))
            self._sharing.add(task)
            task.add_done_callback(self._sharing.discard)
        return changed

    async def _share(self, name: str) -> tuple[dict[str, list[Segment]], bool]:
        """Return what has changed, and whether there may be more. What the child tells is checked, not believed."""
        client, cuts = self._process.client, self._cuts
        if cuts is None or client is None or not self.has(name):
            return {}, False
        try:
            shared = await client.call(m.Share(0, name))
            assert isinstance(shared, m.Shared), shared
            return cuts.take(shared, self._here if self._cuts is cuts else {}), shared.waits
        except (ServingError, BadCut) as error:
            _log.warning("%s shares nothing with others: %s", name, error)
            return {}, False

    async def _share_later(self, name: str, client: Client | None) -> None:
        for delay_s in _SHARE_AGAIN_S:
            await asyncio.sleep(delay_s)
            if self._process.client is not client:
                return
            changed, waits = await self._share(name)
            if changed:
                self.on_shared(changed)
            if not waits:
                return

    async def put_down(self, name: str, *, keep: bool = False) -> None:
        """Drop in the child, which waits until nothing of it runs; a dead child has dropped it already.

        A load that was given up is waited for: what comes of it has to go, too.
        """
        if (loading := self._loading.pop(name, None)) is not None:
            await asyncio.gather(loading, return_exceptions=True)
        if name in self._here and self._process.client is not None:
            del self._here[name]
            try:
                await self._process.client.call(m.Unload(0, name))
            except Restarting:
                _log.info("the child died while %s was leaving it", name)

    async def lower(self, name: str) -> bool:
        """Have ``name`` lie in RAM only; False if that failed, or its process died: then it has to be put down."""
        try:
            await self._move(name, "lower")
        except ServingError as error:
            _log.warning("%s does not stay in RAM: %s", name, error)
            return False
        return True

    async def lift(self, name: str) -> float:
        """Have ``name``, which lies in RAM, on the device; return the seconds of that.

        Raises OutOfMemory or LoadFailed, and it lies in RAM; Restarting if it is gone with its process, or the error
        that it is to blame for. Who cancels this has to ``lower`` the model, or put it down: the copying goes on.
        """
        self._blamed.pop(name, None)
        try:
            moved = await self._move(name, "lift")
        except Restarting:
            if self.has(name):
                await self._until_death_is_noticed()
            if name in self._blamed:
                raise self._blamed.pop(name) from None
            raise
        return moved.times_ms.get("lift", 0.0) / 1e3

    async def forget_copy(self, name: str) -> None:
        """Give up what lies in RAM of ``name``, which is on the device and stays there."""
        try:
            await self._move(name, "forget")
        except ServingError as error:
            _log.info("%s had no copy in RAM any more: %s", name, error)

    async def _move(self, name: str, verb: Literal["lower", "lift", "forget"]) -> m.Loaded:
        """Raises ServingError."""
        client = self._process.client
        if client is None or not self.has(name):
            raise Restarting("the process that held this model has died", retry_after_s=1.0)
        moved = await client.call(m.Move(0, name, verb))
        assert isinstance(moved, m.Loaded), moved
        if not self.has(name):
            raise Restarting("the process died when this model had just been moved", retry_after_s=1.0)
        return moved

    def has(self, name: str) -> bool:
        """Whether ``name`` is in the child, on the device or in RAM, as far as is known."""
        return name in self._here

    async def settle(self) -> None:
        """See Runner: nothing is."""

    def submit(self, name: str, ticket: Ticket) -> None:
        """Send to the child."""
        client = self._process.client
        if client is None:
            gone = Restarting("the process of this model's code is being restarted; try again", retry_after_s=1.0)
            ticket.settle(gone.to_failure())
            return
        self._in_flight[name] = self._in_flight.get(name, 0) + 1

        def end(result: Payload | Failure) -> None:
            """Settle the ticket unless nobody waits for it any more."""
            if not ticket.dropped:
                self._in_flight[name] -= 1
                ticket.dropped = True
                ticket.settle(result)

        def on_result(result: Payload | Failure) -> None:
            """Pass the answer on; that there is none waits for the cause."""
            if result is GONE:
                self._fall(name, end)
            else:
                end(result)

        part = ticket.begin if ticket.part is not None else None
        cancel = client.forward(name, ticket.payload, ticket.deadline_s, on_result, part, ticket.most)

        def on_drop() -> None:
            """Tell the child that nobody waits; called once, instead of ``on_result``."""
            cancel()  # no result will come; if it already runs, the child itself waits for its end before an unload
            self._in_flight[name] -= 1

        ticket.on_drop = on_drop

    def up(self, name: str) -> bool:
        """Whether the child can be reached."""
        return self._process.client is not None and self._process.client.connected

    def busy(self, name: str) -> bool:
        """Whether requests of ``name`` are in the child."""
        return self._in_flight.get(name, 0) > 0

    def _fall(self, name: str, end: Callable[[Payload | Failure], None]) -> None:
        """The connection broke under a request: its answer depends on how the process died, known in a moment."""
        if self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(_NOTICE_S, self._answer_fallen, {})
        self._fallen.append((name, end))

    def _answer_fallen(self, failures: dict[str, Failure]) -> None:
        """Answer those whose connection broke: with their model's own failure, else that they may try again."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        fallen, self._fallen = self._fallen, []
        for name, end in fallen:
            end(failures.get(name, GONE))

    async def _until_death_is_noticed(self) -> None:
        """The socket tells of a death before the kernel does, and only then is its cause known."""
        try:
            async with asyncio.timeout(_NOTICE_S):
                while self._up.is_set():
                    await asyncio.sleep(0.005)
        except TimeoutError:
            _log.error("the child %s has hung up and lives on", self._process.name)

    async def _start(self) -> None:
        while True:
            try:
                await self._process.start()
            except (TimeoutError, Restarting, OSError) as error:  # OSError: no room for a socket or a process
                _log.error("the child %s did not come up (%s); trying again", self._process.name, error)
                self._process.kill()
                await asyncio.sleep(_RETRY_S)
                continue
            self._up.set()
            return

    def _died(self, status: int) -> None:
        self._up.clear()
        lost, self._here = sorted(self._here), {}
        if self._cuts is not None:
            self._cuts = Cuts(f"{self._process.name}:{next(self._lives)}")
        inside = self._page.clear(self._process.last_pid)
        name = self._process.name
        _log.error("the child %s died (%s) inside %s", name, how(status), [i.model for i in inside] or "nothing")
        for each in inside:
            # Beside another model's code that ran, a load is not to blame by itself: it is tried once more.
            if each.phase == "load" and len({one.model for one in inside}) == 1:
                self._blamed[each.model] = while_loading(each, status)
        self.on_lost(lost, inside, status)
        # Only now, when the models count as lost: none of these requests is tried again, for it may be what killed.
        killed = [each.model for each in inside if each.phase == "predict"] if out_of_memory(inside, status) else []
        self._answer_fallen({model: while_answering(model).to_failure() for model in killed})
        if self._again:
            self.start()
