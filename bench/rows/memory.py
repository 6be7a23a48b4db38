"""What one more tiny model costs: PSS of the whole process tree with N models less that with one, over N - 1.

Every model has weights of its own and has answered once. The weights are taken off: what is left is the server's.
"""

from __future__ import annotations

import json
from pathlib import Path

from bench import archives, processes
from bench.pairs import Series
from bench.peers.berth import Berth
from bench.peers.mms import Mms
from bench.peers.server import Server
from bench.report import Goal, Options, Report, Table

TITLE = "memory per further tiny BERT"
MIB = 2**20
_BODY = json.dumps({"inputs": "a small model among many"}).encode()


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
        folders = [archives.tiny(seed) for seed in range(many[name])]
        taken = [_measure(Mms("bert") if name == "mms" else Berth(), folders) for _ in range(repeats)]
        beyond = Series(tuple((all_ - one) / (many[name] - 1) / MIB - weights / MIB for one, all_ in taken))
        first = Series(tuple(one / MIB for one, _ in taken))
        last = Series(tuple(all_ / MIB for _, all_ in taken))
        rows.append((name, str(many[name]), first.text(), last.text(), beyond.text(3)))
        report.samples[name] = {"models": many[name], "pss_bytes": taken}
        if name == "berth":
            report.goals.append(Goal.most("memory per further tiny BERT beyond its weights", beyond, 0.25, "MiB", 3))
    columns = ("", "models", "PSS MiB with 1", "PSS MiB with all", "MiB per further model, its weights taken off")
    report.tables.append(Table(f"tiny BERT, {weights / MIB:.2f} MiB of weights", columns, rows))
    report.notes.append("PSS shares a page among all processes that map it, those of other programs included.")
    return report


def _measure(server: Server, folders: list[Path]) -> tuple[int, int]:
    """Return the PSS in bytes with the first of ``folders`` loaded and with all of them."""
    with server:
        one = 0
        for number, folder in enumerate(folders):
            server.load(f"tiny-{number:03}", folder)
            server.invoke(f"tiny-{number:03}", _BODY)
            one = one or processes.pss_bytes(server.pids())
        return one, processes.pss_bytes(server.pids())
