"""What registered models cost the others: one warm model among 1,000 registered, over the same model alone.

Then what a registered model takes that has sunk: PSS with 1,000 registered and room for 100, less that with 100
registered, over 900.

Goals of a twentieth are under what one sample moves to the next by which core wakes whom: the model alone is measured
before and after each short sample of the same model among all, twenty-five times.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bench import archives, processes, samples, texts
from bench.load import Spec
from bench.pairs import Between, Series, between, over
from bench.peers.berth import Berth
from bench.report import Goal, Options, Report, Table
from bench.samples import Sample

TITLE = "1,000 registered models over 1"
CONNECTIONS = (1, 8)
GOAL, KIB = 1.05, 1024
_MODELS = 1000
_ROOM = 100
_WARM = "tiny-0000"
Taken = dict[int, list[Between[Sample, Sample]]]


def run(options: Options) -> Report:
    """Measure the warm model alone and among the others in turn, then the bytes of one that sank."""
    report = Report("catalogue", TITLE)
    count = 200 if options.quick else _MODELS
    folders = [archives.tiny(seed) for seed in range(count)]
    with Berth() as alone, Berth() as among:
        _register(alone, folders[:1])
        _register(among, folders)
        taken = {each: _measured(alone, among, each, options) for each in CONNECTIONS}
    for connections, several in taken.items():
        by_who = {
            "alone": [sample for each in several for sample in (each.before, each.after)],
            "among all": [each.of for each in several],
        }
        report.tables.append(_table(connections, by_who))
        report.samples[str(connections)] = {
            who: [dataclasses.asdict(sample) for sample in of_one] for who, of_one in by_who.items()
        }
    report.goals = _goals(taken, count)
    _idle(report, folders, 1 if options.quick else 3)
    report.notes.append(f"{count:,} tiny BERTs with weights of their own, all up in the first two tables.")
    return report


def _register(server: Berth, folders: list[Path]) -> None:
    for number, folder in enumerate(folders):
        server.load(f"tiny-{number:04}", folder)


def _measured(alone: Berth, among: Berth, connections: int, options: Options) -> list[Between[Sample, Sample]]:
    bodies = texts.bodies(64)

    def measure(server: Berth) -> Sample:
        calls = [server.invocation(_WARM, body) for body in bodies]
        return samples.take(server, Spec(server.port, calls, connections, max(0.75, options.seconds / 4), 0.25))

    return between(lambda: measure(alone), {"among all": lambda: measure(among)}, 5 * options.rounds)["among all"]


def _table(connections: int, by_who: dict[str, list[Sample]]) -> Table:
    rows = [
        (who, samples.throughput(several).text(0), samples.p50(several).text(2), samples.p99(several).text(2))
        for who, several in by_who.items()
    ]
    return Table(f"{connections} connections", ("the warm model", "requests/s", "p50 ms", "p99 ms"), rows)


def _goals(taken: Taken, count: int) -> list[Goal]:
    goals = []
    for connections, several in taken.items():
        said = f"{count:,} registered over 1, {connections} connections"
        slower = over(several, lambda among: 1 / among.outcome.per_s, lambda alone: 1 / alone.outcome.per_s)
        goals.append(Goal.ratio(f"{said}: requests/s, 1 over {count:,}", slower, GOAL, "most"))
        goals.append(Goal.ratio(f"{said}: p99", over(several, samples.p99_ms, samples.p99_ms), GOAL, "most"))
    return goals


def _idle(report: Report, folders: list[Path], repeats: int) -> None:
    """The bytes of a registered model that lies on the disk."""
    limit = int((_ROOM + 0.5) * archives.bytes_of_weights(folders[0]))
    taken = [_room_for_some(limit, folders) for _ in range(repeats)]
    further = len(folders) - _ROOM
    each = Series(tuple((after - before) / further / KIB for before, after, _ in taken))
    report.samples["idle"] = taken
    columns = ("registered", "up", "sunk", "KiB a model that sank")
    row = (f"{len(folders):,}", f"{_ROOM}", f"{min(sunk for *_, sunk in taken):.0f}", each.text())
    report.tables.append(Table("PSS of all processes", columns, [row]))
    report.goals.append(Goal.most("a registered model that has sunk", each, 50_000 / KIB, "KiB"))


def _room_for_some(limit: int, folders: list[Path]) -> tuple[int, int, float]:
    """Return PSS with as many models as there is room for, with all, and how many lie on the disk then."""
    with Berth({"BERTH_MEMORY_LIMIT": str(limit)}) as server:
        _register(server, folders[:_ROOM])
        for number in range(_ROOM):
            server.invoke(f"tiny-{number:04}", texts.bodies(1)[0])
        before = processes.pss_bytes(server.pids())
        for number, folder in enumerate(folders[_ROOM:], _ROOM):
            server.load(f"tiny-{number:04}", folder)
            server.invoke(f"tiny-{number:04}", texts.bodies(1)[0])
        return before, processes.pss_bytes(server.pids()), server.metric("berth_models", tier="disk")
