"""A working set of twice the memory, called evenly: bytes that rise a second, over what the way up can carry.

    RAM          rises read files whose pages are thrown out of the page cache when the model has sunk (in place of a
                 cgroup's limit); the limit is the best raw read of the same files in the same run
    simulated    a device of its own beside RAM (BERTH_DEVICE=sim), whose bandwidth is the limit

With equal chances nothing beats half of the calls finding their model up.
"""

from __future__ import annotations

import dataclasses
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import archives, samples
from bench.gpu_stage import forget_cached, raw_read
from bench.load import Call, Spec
from bench.pairs import Ratio, Series
from bench.peers.berth import Berth
from bench.report import Goal, Options, Report, Table
from bench.samples import Sample

TITLE = "working set of twice the memory, uniform traffic"
GOAL, CONNECTIONS, MODELS = 0.9, 8, 4
SIM_BYTES_PER_S = 500_000_000
_BODY = json.dumps({"inputs": "hi"}).encode()


class _Taken(NamedTuple):
    """rises: how many, in ``seconds``. limit: bytes a second that the way up carries."""

    sample: Sample
    rises: float
    seconds: float
    limit: float


def run(options: Options) -> Report:
    """Measure RAM under dropped pages, then the simulated device."""
    report = Report("pressure", TITLE)
    folders = [archives.base(seed) for seed in range(MODELS)]
    size = archives.bytes_of_weights(folders[0])
    room = str(int((MODELS / 2 + 0.2) * size))
    seconds = max(options.seconds, 3.0)
    with Berth({"BERTH_MEMORY_LIMIT": room}) as server:
        files = _load(server, folders)
        with _dropping(server, files):
            from_disk = [_measure(server, seconds, _read_limit(files[0])) for _ in range(options.rounds)]
    sim = {"BERTH_DEVICE": f"sim:{room}B@{SIM_BYTES_PER_S}B/s", "BERTH_HOST_MEMORY_LIMIT": str(5 * size)}
    with Berth(sim) as server:
        _load(server, folders)
        lifted = [_measure(server, seconds, SIM_BYTES_PER_S) for _ in range(options.rounds)]
    for where, taken in (("RAM, from the disk", from_disk), ("simulated device, from RAM", lifted)):
        _show(report, where, taken, size)
    report.notes.append("bytes risen: rises times the weights of one. A model in RAM touches fewer: most words never")
    report.notes.append("come up, so its part may be over 1.")
    return report


def _load(server: Berth, folders: list[Path]) -> list[Path]:
    """Register all; return their weight files."""
    for number, folder in enumerate(folders):
        server.load(f"m{number}", folder)
    return [folder / "model.safetensors" for folder in folders]


def _read_limit(file: Path) -> float:
    return max(raw_read(file, readers) for readers in (1, 4))


@contextmanager
def _dropping(server: Berth, files: list[Path]) -> Iterator[None]:
    """Throw the pages of each model's file out of the page cache when it has sunk."""
    stop = threading.Event()

    def again() -> None:
        tiers = [""] * len(files)
        while not stop.wait(0.04):
            for number, file in enumerate(files):
                tier = server.describe(f"m{number}")["tier"]
                if tier == "disk" != tiers[number]:
                    forget_cached(file)
                tiers[number] = tier

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _calls(server: Berth) -> list[Call]:
    chance = random.Random(2)
    return [server.invocation(f"m{chance.randrange(MODELS)}", _BODY) for _ in range(1000)]


def _measure(server: Berth, seconds: float, limit: float) -> _Taken:
    before, began = server.metric("berth_promotions_total"), time.monotonic()
    sample = samples.take(server, Spec(server.port, _calls(server), CONNECTIONS, seconds, 0.0))
    return _Taken(sample, server.metric("berth_promotions_total") - before, time.monotonic() - began, limit)


def _show(report: Report, where: str, taken: list[_Taken], size: int) -> None:
    load = [each.sample for each in taken]
    risen = Series(tuple(each.rises * size / each.seconds / 1e9 for each in taken))
    limit = Series(tuple(each.limit / 1e9 for each in taken))
    up = Series(tuple(100 * (1 - each.rises / max(1, each.sample.outcome.answered)) for each in taken))
    figures = (samples.throughput(load).text(1), samples.p99(load).text(0), up.text(0), risen.text(2), limit.text(2))
    columns = ("requests/s", "p99 ms", "requests a rise was not needed for, %", "GB/s risen", "limit, GB/s")
    report.tables.append(Table(where, columns, [figures]))
    report.goals.append(Goal.ratio(f"{where}: throughput over the rise limit", Ratio(risen, limit), GOAL))
    report.samples[where] = [{**each._asdict(), "sample": dataclasses.asdict(each.sample)} for each in taken]
