"""What one more tiny model costs: PSS of the whole process tree with N models less that with one, over N - 1.

Every model has weights of its own and has answered once. The weights are taken off: what is left is the server's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bench import archives, processes
from bench.pairs import Series
from bench.peers.berth import Berth
from bench.peers.mms import Mms
from bench.peers.server import Server
from bench.report import Goal, Options, Report, Table

TITLE = "memory per further tiny BERT"
MIB = 2**20
_BODY = json.dumps({"inputs": "a small model among many"}).encode()


class _Memory(NamedTuple):
    """Bytes of a server's processes: all, and those that no file backs."""

    pss: int
    anonymous: int

    @staticmethod
    def of(server: Server) -> _Memory:
        pids = server.pids()
        return _Memory(processes.pss_bytes(pids), processes.pss_bytes(pids, "Pss_Anon"))


def run(options: Options) -> Report:
    """Measure berth and multi-model-server with one model and with many."""
    report = Report("memory", TITLE)
    many = {"berth": 50 if options.quick else 200, "mms": 4}
    repeats = 1 if options.quick else 3
    weights = archives.bytes_of_weights(archives.tiny(0))
    rows = []
    for name in ("mms", "berth"):
        if name not in options.peers:
            continue
        further = many[name] - 1
        folders = [archives.tiny(seed) for seed in range(many[name])]
        taken = [_measure(Mms("bert") if name == "mms" else Berth(), folders) for _ in range(repeats)]
        beyond = _mib((all_.pss - one.pss) / further - weights for one, all_ in taken)
        anonymous = _mib((all_.anonymous - one.anonymous) / further for one, all_ in taken)
        first, last = _mib(one.pss for one, _ in taken), _mib(all_.pss for _, all_ in taken)
        rows.append((name, str(many[name]), first.text(), last.text(), beyond.text(3), anonymous.text(3)))
        report.samples[name] = {"models": many[name], "one_and_all": taken}
        if name == "berth":
            worse = max(beyond, anonymous, key=lambda series: series.median)
            report.goals.append(Goal.most("memory per further tiny BERT beyond its weights", worse, 0.25, "MiB", 3))
    columns = ("", "models", "PSS MiB, 1", "PSS MiB, all", "a further model less its weights", "its anonymous part")
    report.tables.append(Table(f"tiny BERT, {weights / MIB:.2f} MiB of weights; MiB", columns, rows))
    report.notes.append("Mapped weights count only where they were touched, so their whole size takes off too much;")
    report.notes.append("the anonymous part holds none of them. The goal is judged by the larger of the two.")
    report.notes.append("PSS shares a page among all processes that map it, those of other programs included.")
    return report


def _measure(server: Server, folders: list[Path]) -> tuple[_Memory, _Memory]:
    """Return what is used with the first of ``folders`` loaded, and with all of them."""
    with server:
        one = None
        for number, folder in enumerate(folders):
            server.load(f"tiny-{number:03}", folder)
            server.invoke(f"tiny-{number:03}", _BODY)
            one = one or _Memory.of(server)
        assert one is not None, "there is at least one folder"
        return one, _Memory.of(server)


def _mib(sizes: Iterable[float]) -> Series:
    return Series(tuple(size / MIB for size in sizes))
