"""A working set of twice the memory, called evenly: bytes that rise a second, over what the way up can carry.

    RAM          the server runs in a control group that has memory for four of the eight models, so that the page cache
                 cannot hold the others; the limit is a raw read of the same files for as long, just before and just
                 after, by as many threads as do it fastest
    simulated    a device of its own beside RAM (BERTH_DEVICE=sim), whose bandwidth is the limit

Counted are the weights of the models that rose, or what the disk was really read for them if that is less: of a mapped
model words that never come up need not be read, and a page that was lost and read again is no further byte risen.
With equal chances nothing beats half of the calls finding their model up.
"""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import archives, processes, samples, texts
from bench.disk import forget_cached, raw_read
from bench.groups import Group, group
from bench.load import Call, Spec
from bench.pairs import Ratio, Series, between, over
from bench.peers.berth import Berth
from bench.report import Goal, Options, Report, Table
from bench.samples import Sample

TITLE = "working set of twice the memory, uniform traffic"
GOAL, CONNECTIONS, MODELS = 0.9, 8, 8
SIM_BYTES_PER_S = 500_000_000
#: Models that the server may have up, and those for which its group has memory beside what cannot be dropped.
ROOM, LIMIT = 4.05, 4.1
_WARMUP_S = 1.0
#: The load goes on for so long after the counted seconds, so that they can end with a rise.
_TAIL_S = 2.0
_READERS = (2, 4)


class _Taken(NamedTuple):
    """rises, and bytes that the disk was read for, a second."""

    sample: Sample
    rises: float
    read: float


class _Seen(NamedTuple):
    """rises, and bytes read from the disk, until then."""

    at_s: float
    rises: float
    read: int


def run(options: Options) -> Report:
    """Measure RAM under a limit, then the simulated device."""
    report = Report("pressure", TITLE)
    folders = [archives.base(seed) for seed in range(MODELS)]
    size = archives.bytes_of_weights(folders[0])
    room = str(int(ROOM * size))
    seconds = max(options.seconds, 3.0)
    with group("berth-bench") as made, Berth({"BERTH_MEMORY_LIMIT": room}, made) as server:
        files = _load(server, folders)
        with _limited(server, folders, made, int(LIMIT * size)):
            taken = between(
                lambda: max(raw_read(files, readers, seconds) for readers in _READERS),
                {"RAM": lambda: _measure(server, seconds)},
                options.rounds,
            )["RAM"]
    from_disk = over(taken, lambda each: min(each.rises * size, each.read) / 1e9, lambda limit: limit / 1e9)
    _show(report, "RAM, from the disk", [each.of for each in taken], from_disk, size)
    report.samples["raw reads"] = [(each.before, each.after) for each in taken]
    if made is None:
        report.notes.append("NO CONTROL GROUP could be made here: the pages of models that sank were dropped instead")
    else:
        report.notes.append(f"the group has memory for {LIMIT} models beside what its processes hold")
    sim = {"BERTH_DEVICE": f"sim:{room}B@{SIM_BYTES_PER_S}B/s", "BERTH_HOST_MEMORY_LIMIT": str(5 * size)}
    with Berth(sim) as server:
        _load(server, folders)
        lifted = [_measure(server, seconds) for _ in range(options.rounds)]
    risen = Series(tuple(each.rises * size / 1e9 for each in lifted))
    limit = Series((SIM_BYTES_PER_S / 1e9,) * len(lifted))
    _show(report, "simulated device, from RAM", lifted, Ratio(risen, limit), size)
    return report


def _load(server: Berth, folders: list[Path]) -> list[Path]:
    """Register all; return their weight files. Whoever reads a file first has its page cache: the server."""
    for number, folder in enumerate(folders):
        forget_cached(folder / "model.safetensors")
        server.load(f"m{number}", folder)
    return [folder / "model.safetensors" for folder in folders]


@contextmanager
def _limited(server: Berth, folders: list[Path], made: Group | None, nbytes: int) -> Iterator[None]:
    """Leave the server ``nbytes`` for files, after it has answered for each model."""
    for number in range(len(folders)):
        server.invoke(f"m{number}", texts.bodies(1)[0])
    if made is None:
        with _dropping(server, [folder / "model.safetensors" for folder in folders]):
            yield
    else:
        made.limit(made.held_bytes() + nbytes)
        yield


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
    return [server.invocation(f"m{chance.randrange(MODELS)}", body) for body in texts.bodies(1000)]


def _measure(server: Berth, seconds: float) -> _Taken:
    """Return a sample, and the rises and reads of about the same time, from within the load, from rise to rise."""
    began = time.monotonic()
    seen: list[_Seen] = []

    def look() -> None:
        pids = server.pids()
        for due in (began + _WARMUP_S, began + _WARMUP_S + seconds):
            seen.append(_at_next_rise(server, pids, due))

    thread = threading.Thread(target=look)
    thread.start()
    spec = Spec(server.port, _calls(server), CONNECTIONS, seconds + _TAIL_S, _WARMUP_S)
    sample = samples.take(server, spec)
    thread.join()
    since, until = seen
    took = until.at_s - since.at_s
    return _Taken(sample, (until.rises - since.rises) / took, (until.read - since.read) / took)


def _at_next_rise(server: Berth, pids: list[int], due: float) -> _Seen:
    """Return what is seen at the first rise that ends after ``due``, or a while later if none does."""
    time.sleep(max(0.0, due - time.monotonic()))
    first = rises = server.metric("berth_promotions_total")
    while rises == first and time.monotonic() < due + _TAIL_S - 0.5:
        time.sleep(0.02)
        rises = server.metric("berth_promotions_total")
    return _Seen(time.monotonic(), rises, processes.disk_bytes(pids))


def _show(report: Report, where: str, taken: list[_Taken], ratio: Ratio, size: int) -> None:
    load = [each.sample for each in taken]
    risen = Series(tuple(each.rises * size / 1e9 for each in taken))
    read = Series(tuple(each.read / 1e9 for each in taken))
    up = Series(tuple(100 * (1 - each.rises / max(1.0, each.sample.outcome.per_s)) for each in taken))
    figures = (samples.throughput(load).text(1), samples.p99(load).text(0), up.text(0), risen.text(2), read.text(2))
    columns = (
        "requests/s",
        "p99 ms",
        "requests a rise was not needed for, %",
        "GB/s risen",
        "GB/s read",
        "limit, GB/s",
    )
    report.tables.append(Table(where, columns, [(*figures, ratio.under.text(2))]))
    report.goals.append(Goal.ratio(f"{where}: throughput over the rise limit", ratio, GOAL))
    report.samples[where] = [{**each._asdict(), "sample": dataclasses.asdict(each.sample)} for each in taken]
