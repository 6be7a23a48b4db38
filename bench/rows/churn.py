"""What is left behind by models that came, answered and went: descriptors, threads, mappings, PSS."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import NamedTuple

from bench import archives, processes, texts
from bench.peers.berth import Berth
from bench.report import Goal, Options, Report, Table

TITLE = "what 1,000 loads, answers and unloads leave behind"
MIB = 1 << 20
#: Before anything is counted: threads of the pools start, the allocator finds its size.
_WARM = 200


class _State(NamedTuple):
    """Of all processes of the server together. maps: lines of /proc/PID/maps. own: PSS of memory without a file."""

    descriptors: int
    threads: int
    maps: int
    pss: int
    own: int

    @staticmethod
    def of(server: Berth) -> _State:
        pids = server.pids()
        return _State(
            sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
            sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids),
            sum(len(Path(f"/proc/{pid}/maps").read_text().splitlines()) for pid in pids),
            processes.pss_bytes(pids),
            processes.pss_bytes(pids, "Pss_Anon") + processes.pss_bytes(pids, "Pss_Shmem"),
        )


def run(options: Options) -> Report:
    """Warm up, look, load and unload, look again; every hundred cycles on the way, too."""
    report = Report("churn", TITLE)
    cycles = 200 if options.quick else 1000
    folders = [archives.tiny(seed) for seed in range(50)]
    bodies = texts.bodies(50)
    with Berth() as server:
        places = [server.place(f"tiny-{number:02}", folder) for number, folder in enumerate(folders)]
        _cycles(server, places, bodies, _WARM)
        states = [_settled(server)]
        began = time.monotonic()
        for _ in range(cycles // 100):
            _cycles(server, places, bodies, 100)
            states.append(_settled(server))
        took_s = time.monotonic() - began
    first, last = states[0], states[-1]
    rows = [
        (
            f"{number * 100:,}",
            str(state.descriptors),
            str(state.threads),
            str(state.maps),
            f"{state.pss / MIB:.2f}",
            f"{state.own / MIB:.2f}",
        )
        for number, state in enumerate(states)
    ]
    columns = ("cycles", "descriptors", "threads", "mappings", "PSS MiB", "of no file, MiB")
    report.tables.append(Table(f"after {_WARM} cycles that are not counted", columns, rows))
    report.samples["states"] = states
    report.samples["seconds"] = round(took_s, 1)
    for what, found in (
        ("descriptors", last.descriptors - first.descriptors),
        ("threads", last.threads - first.threads),
        ("mappings", last.maps - first.maps),
    ):
        report.goals.append(Goal(what, "0 more", f"{found:+d}", "reached" if found <= 0 else "missed"))
    creep = (last.own - first.own) / MIB
    verdict = "reached" if creep <= 1 else "missed"
    report.goals.append(Goal("memory of no file", "within 1 MiB", f"{creep:+.2f} MiB", verdict))
    report.notes.append(f"{cycles:,} cycles of POST, invoke and DELETE: {took_s / cycles * 1e3:.1f} ms each.")
    report.notes.append("PSS moves with other programs that map the same libraries; what is judged does not.")
    return report


def _cycles(server: Berth, places: list[Path], bodies: list[bytes], count: int) -> None:
    for number in range(count):
        which = number % len(places)
        server.post_model("coming-and-going", places[which])
        server.invoke("coming-and-going", bodies[which])
        server.unload("coming-and-going")


def _settled(server: Berth) -> _State:
    """What is there once connections of the last cycle are closed."""
    gc.collect()
    time.sleep(1.0)
    return _State.of(server)
