"""Models tried in an engine of its own: loaded, asked, sunk, asked again, asked in a batch, unloaded.

    python -m container.engine.trial --events FD --parent PID < requests

Started by ``berth check`` and ``berth pack``, with a state folder of its own. Requests come as JSON lines, one model
after the other; what happens is written to the descriptor as JSON lines (``engine/report``); the log goes to stderr as
always. Authors' code runs where it would run in the server, in a host child. The process ends with whoever started it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import uvloop

from container import log
from container.engine.main import Parts
from container.engine.report import Event, Fault, Phase, Report, Request, same
from container.errors import Failure, LoadFailed, ServingError
from container.lifeline import die_with_parent
from container.memory.ledger import Tier
from container.model import resolve, watch
from container.payload import JSON, Payload
from container.settings import Settings
from container.wire import messages as m
from container.wire.server import make_run_folder

#: Requests at once. Some of them meet in a batch: of slow ones all but the first wait anyway, of quick ones there are
#: more than come one by one.
TOGETHER_SLOW, TOGETHER_QUICK = 4, 24
QUICK_MS = 50.0
WARM_CALLS = 5
_ANSWER_S = 600.0

T = TypeVar("T")


class _Ended(Exception):
    """A fault was found; the rest would say nothing new."""


class Trial:
    """One model in one engine; ``report`` is filled as it goes."""

    def __init__(self, parts: Parts, request: Request, tell: Callable[[Event], None]) -> None:
        self._parts = parts
        self._name = request.name
        self._folder = Path(request.folder)
        self._request = request
        self._tell = tell
        self._ids = itertools.count(1)
        self.report = Report(device=parts.device)

    async def run(self) -> Report:
        """Do all of it, up to the first fault."""
        try:
            example = await self._load()
            payload = self._payload(example)
            if payload is not None and self._request.ask:
                await self._ask(payload)
            await self._unload()
        except _Ended:
            pass
        return self.report

    async def _load(self) -> Payload | None:
        self._tell(Phase("load"))
        started = time.perf_counter()
        loaded = await self._guarded(
            "load", self._parts.loading.load(m.Load(0, self._name, str(self._folder)), kept=False)
        )
        report, model = self.report, self._parts.models.known(self._name)
        assert model.manifest is not None
        manifest, ledger = model.manifest, self._parts.keeper.ledger
        report.load_ms = (time.perf_counter() - started) * 1e3
        report.times_ms = loaded.times_ms
        report.kind, report.task, report.place = manifest.kind, manifest.task, resolve.place_of(manifest)
        if model.runner is self._parts.own:
            report.place = "own"
        report.timeout_s = manifest.settings.timeout_s
        report.bytes = {
            tier.value: ledger.bytes(self._name) for tier in ledger.tiers if self._name in ledger.used_by(tier)
        }
        report.files_bytes = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        return loaded.example

    def _payload(self, example: Payload | None) -> Payload | None:
        model = self._parts.models.known(self._name)
        assert model.manifest is not None
        warmup = model.manifest.settings.warmup
        if self._request.payload is not None:
            self.report.request = "given"
            return self._request.payload
        if warmup is not None:
            self.report.request = "warmup"
            return Payload(msgspec.json.encode(warmup), JSON)
        if example is not None:
            self.report.request = "example"
        return example

    async def _ask(self, payload: Payload) -> None:
        report = self.report
        self._tell(Phase("answer"))
        first, report.first_ms = await self._answer("answer", payload)
        report.answer_type, report.answer_bytes = first.content_type, len(first.body)
        report.answer_start = first.body[:200].decode("utf-8", "replace")
        warm = [await self._answer("answer", payload) for _ in range(WARM_CALLS)]
        report.warm_ms = statistics.median(took_ms for _, took_ms in warm)
        report.varies = not all(same(first, answer) for answer, _ in warm)
        self._tell(Phase("sink"))
        await self._sink()
        again, report.rise_ms = await self._answer("sink", payload)
        self._compare("sink", first, again, "sunk to the disk and risen again")
        self._tell(Phase("batch"))
        count = TOGETHER_QUICK if report.warm_ms < QUICK_MS else TOGETHER_SLOW
        for answer, _ in await asyncio.gather(*(self._answer("batch", payload) for _ in range(count))):
            self._compare("batch", first, answer, f"asked {count} times at once")

    async def _sink(self) -> None:
        while self._parts.models.known(self._name).held:
            await asyncio.sleep(0.001)
        for tier in (Tier.DEVICE, Tier.HOST):
            await self._parts.residence.sink(self._name, tier)

    def _compare(self, phase: str, first: Payload, other: Payload, when: str) -> None:
        if not self.report.varies and not same(first, other):
            self._fail(
                phase,
                "model.bad_answer",
                f"{when}, it answers differently from the first time: {_shown(first)} became {_shown(other)}; "
                "see whether predict mixes up the inputs of a batch, or keeps something between calls",
            )

    async def _unload(self) -> None:
        self._tell(Phase("unload"))
        gone = await self._guarded("unload", self._parts.loading.unload(m.Unload(0, self._name)))
        self.report.freed_bytes = gone.freed_bytes

    async def _answer(self, phase: str, payload: Payload) -> tuple[Payload, float]:
        """Return the answer and the milliseconds it took."""
        answered: asyncio.Future[m.Reply] = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        request = m.Invoke(next(self._ids), self._name, payload, time.monotonic() + _ANSWER_S)
        self._parts.engine.invoke(request, answered.set_result)
        reply = await answered
        took_ms = (time.perf_counter() - started) * 1e3
        assert isinstance(reply, m.Answer), reply
        if isinstance(reply.result, Failure):
            whose = {"given": "the request", "": "", "warmup": "berth.json's warmup", "example": "its own example"}
            what = whose[self.report.request]
            self._fail(phase, reply.result.code, f"{what} is not answered: {reply.result.message}")
        return reply.result, took_ms  # type: ignore[return-value]  # _fail raises

    async def _guarded(self, phase: str, work: Awaitable[T]) -> T:
        """Return what ``work`` returns; a ServingError of it, or its time running out, is the fault."""
        task = asyncio.ensure_future(work)
        done, _ = await asyncio.wait([task], timeout=self._request.limit_s)
        try:
            if not done:
                raise LoadFailed(
                    f"it was not done within {self._request.limit_s:.0f} s; the platform gives up after 360 s in all"
                )
            return await task
        except ServingError as error:
            self._fail(phase, error.code, error.message)
            raise AssertionError("_fail raises") from error

    def _fail(self, phase: str, code: str, message: str) -> None:
        self.report.fault = Fault(phase, code, message)
        raise _Ended


def _shown(payload: Payload) -> str:
    text = repr(payload.body[:60].decode("utf-8", "replace"))
    return f"{text}..." if len(payload.body) > 60 else text


async def _run(settings: Settings, tell: Callable[[Event], None]) -> None:
    parts = Parts(settings, lambda message: None)
    parts.guests.start()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        tell(await Trial(parts, msgspec.json.decode(line, type=Request), tell).run())
    try:
        async with asyncio.timeout(5.0):
            await asyncio.gather(parts.guests.stop(), parts.own.stop())
    except TimeoutError:
        pass  # they end with this process


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m container.engine.trial``; requests come on stdin."""
    parser = argparse.ArgumentParser(description="Tries models; started by `berth check`.")
    parser.add_argument("--events", type=int, required=True, help="descriptor that what happens is written to")
    parser.add_argument("--parent", type=int, required=True, help="pid of the process with which this one ends")
    options = parser.parse_args(argv)
    die_with_parent(options.parent)
    settings = Settings.of_process()
    log.configure("trial", settings.log_level)
    make_run_folder(settings.run_dir)
    watch.Page(settings.run_dir / "page", create=True)
    with os.fdopen(options.events, "wb", buffering=0) as events:

        def tell(event: Event) -> None:
            """Write ``event`` as one JSON line."""
            events.write(msgspec.json.encode(event) + b"\n")

        uvloop.run(_run(settings, tell))
    os._exit(0)  # lanes may be deep in a batch that nobody waits for


if __name__ == "__main__":
    sys.exit(main())
