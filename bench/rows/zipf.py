"""Fifty tiny models, called as Zipf's law with exponent 1 has it, over 8 connections: room for all, room for ten."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from bench import archives, processes, samples, texts
from bench.load import Call, Spec
from bench.pairs import Series, alternate
from bench.peers.berth import Berth
from bench.report import Goal, Options, Report, Table
from bench.samples import Sample

TITLE = "50 tiny models under Zipf(1.0), 8 connections"
MODELS, ROOM, CONNECTIONS, CALLS = 50, 10, 8, 4000
MIB = 1 << 20
#: requests/s of MLServer with all resident, on 2 such cores, measured on another day (it is not part of this run).
MLSERVER = 431


class _Taken(NamedTuple):
    """sample: under load. rises: of models, a request. pss: of all processes after it."""

    sample: Sample
    rises: float
    pss: int


def run(options: Options) -> Report:
    """Measure both rooms in turn."""
    report = Report("zipf", TITLE)
    folders = [archives.tiny(seed) for seed in range(MODELS)]
    rooms = {"all 50": 8 << 30, "10 of 50": _bytes_of_ten()}
    with ExitStack() as stack:
        servers = {
            room: stack.enter_context(Berth({"BERTH_MEMORY_LIMIT": str(limit)})) for room, limit in rooms.items()
        }
        loads = {}
        for room, server in servers.items():
            places = [server.place(f"m{number}", folder) for number, folder in enumerate(folders)]
            began = time.monotonic()
            for number, place in enumerate(places):
                server.post_model(f"m{number}", place)
            loads[room] = time.monotonic() - began
        taken = alternate({room: _measuring(server, options) for room, server in servers.items()}, options.rounds)
    _show(report, taken, loads)
    return report


def _bytes_of_ten() -> int:
    """What the ledger books for ten of them, and half of one; their tokenizer is the same in all."""
    with Berth() as server:
        server.load("m0", archives.tiny(0))
        server.invoke("m0", texts.bodies(1)[0])
        described = server.describe("m0")
    tokenizer = int(described.get("tokenizerBytes", 0))
    return tokenizer + int((ROOM + 0.5) * (int(described["bytes"]) - tokenizer))


def _calls(server: Berth) -> list[Call]:
    chance, bodies = random.Random(1), texts.bodies(64)
    weights = [1 / (rank + 1) for rank in range(MODELS)]
    asked = chance.choices(range(MODELS), weights, k=CALLS)
    return [server.invocation(f"m{number}", chance.choice(bodies)) for number in asked]


def _measuring(server: Berth, options: Options) -> Callable[[], _Taken]:
    calls = _calls(server)

    def measure() -> _Taken:
        before = server.metric("berth_promotions_total")
        sample = samples.take(server, Spec(server.port, calls, CONNECTIONS, options.seconds, 1.0))
        rises = server.metric("berth_promotions_total") - before
        return _Taken(sample, rises / max(1, sample.outcome.answered), processes.pss_bytes(server.pids()))

    return measure


def _show(report: Report, taken: dict[str, list[_Taken]], loads: dict[str, float]) -> None:
    rows = []
    for room, several in taken.items():
        load = [each.sample for each in several]
        rises = Series(tuple(100 * each.rises for each in several))
        memory = Series(tuple(each.pss / MIB for each in several))
        rates = samples.throughput(load)
        figures = (rates.text(0), samples.p50(load).text(1), samples.p99(load).text(1), rises.text(1), memory.text(0))
        rows.append((room, *figures, f"{loads[room]:.2f}"))
        report.samples[room] = [{**each._asdict(), "sample": dataclasses.asdict(each.sample)} for each in several]
        times = 3 if room == "all 50" else 2
        verdict = "reached" if rates.median >= times * MLSERVER else "missed"
        wanted = f"at least {times * MLSERVER:,} ({times} x MLServer's {MLSERVER}, not of this run)"
        report.goals.append(Goal(f"requests/s, room for {room}", wanted, rates.text(0), verdict))
        report.goals.append(Goal.most(f"memory, room for {room}", memory, 600, "MiB", 0))
    report.samples["load_s"] = loads
    report.goals.append(Goal.most("time to load all", Series((loads["all 50"],)), 2, "s", 2))
    columns = ("room for", "requests/s", "p50 ms", "p99 ms", "rises in 100 requests", "PSS MiB", "seconds to load all")
    report.tables.append(Table("tiny BERT, 16 tokens", columns, rows))
    report.notes.append("MLServer is not installed with the project; multi-model-server would be 102 processes here.")
