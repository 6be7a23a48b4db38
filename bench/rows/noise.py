"""What a model feels of another one: p99 of MiniLM while BERT-base loads, sinks and rises, over MiniLM alone.

The other model (438 MB) does one thing over and over, on one connection: POST and DELETE; the same with a script of
its own, which loads it with transformers; or two of them called in turn where only one has room. Four times a second is
judged; as fast as it goes, where it computes and copies on the cores that MiniLM has alone otherwise, is shown beside.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

from bench import archives, samples, texts
from bench.load import Spec
from bench.pairs import Ratio, Series, alternate
from bench.peers.berth import Berth
from bench.report import Goal, Options, Report, Table
from bench.samples import Sample

TITLE = "p99 of one model while another comes and goes"
_A = "minilm"
_BODY = json.dumps({"inputs": "hi"}).encode()
#: what the other does -> goal
GOALS = {"loads": 1.5, "sinks and rises": 1.5, "loads, with code": 2.0}
_EVERY_S, _FAST = 0.25, ", without a pause"
Taken = dict[str, list[tuple[Sample, float]]]


def run(options: Options) -> Report:
    """Measure alone and beside each kind of noise, in turn."""
    report = Report("noise", TITLE)
    size = archives.bytes_of_weights(archives.base(0))
    limit = int(archives.bytes_of_weights(archives.minilm()) + 1.5 * size)
    with Berth({"BERTH_MEMORY_LIMIT": str(limit)}) as server:
        server.load(_A, archives.minilm())
        plain, coded = server.place("plain", archives.base(0)), server.place("coded", archives.base_with_code())
        one, two = server.place("one", archives.base(1)), server.place("two", archives.base(2))
        for folder in (plain, coded, one, two):
            archives.warm(folder)

        def comes_and_goes(name: str) -> Callable[[], None]:
            folder = plain if name == "plain" else coded

            def once() -> None:
                server.post_model(name, folder)
                server.unload(name)

            return once

        turn = cycle(("one", "two"))
        noises: dict[str, Callable[[], None] | None] = {
            "alone": None,
            "loads": comes_and_goes("plain"),
            "sinks and rises": lambda: _called(server, next(turn)),
            "loads, with code": comes_and_goes("coded"),
        }
        noises |= {f"{what}{_FAST}": noises[what] for what in ("loads", "sinks and rises")}
        comes_and_goes("coded")()  # the child that runs scripts starts, and imports transformers

        def measure(what: str) -> tuple[Sample, float]:
            turning = what.startswith("sinks and rises")
            for name, folder in (("one", one), ("two", two)) if turning else ():
                server.post_model(name, folder)
            taken = _beside(server, noises[what], 0.0 if what.endswith(_FAST) else _EVERY_S, options)
            for name in ("one", "two") if turning else ():
                server.unload(name)
            return taken

        taken = alternate({what: (lambda what=what: measure(what)) for what in noises}, options.rounds)  # type: ignore[misc]
    _show(report, taken)
    return report


def _called(server: Berth, name: str) -> None:
    server.invoke(name, _BODY)


def _beside(server: Berth, noise: Callable[[], None] | None, every_s: float, options: Options) -> tuple[Sample, float]:
    """Return a sample of the model, and how often a second the noise was made meanwhile."""
    calls = [server.invocation(_A, body) for body in texts.bodies(64)]
    with _making(noise, every_s) as times:
        sample = samples.take(server, Spec(server.port, calls, 1, options.seconds, 1.0))
    return sample, times[0] / (options.seconds + 1.0)


@contextmanager
def _making(noise: Callable[[], None] | None, every_s: float) -> Iterator[list[int]]:
    times, stop = [0], threading.Event()
    failed: list[Exception] = []

    def again() -> None:
        try:
            while noise is not None and not stop.is_set():
                due = time.monotonic() + every_s
                noise()
                times[0] += 1
                stop.wait(max(0.0, due - time.monotonic()))
        except Exception as error:  # noqa: BLE001  (handed on below)
            failed.append(error)

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield times
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


def _show(report: Report, taken: Taken) -> None:
    rows = []
    for what, several in taken.items():
        rates = Series(tuple(rate for _, rate in several))
        of_a = [sample for sample, _ in several]
        report.samples[what] = [(dataclasses.asdict(sample), rate) for sample, rate in several]
        figures = (samples.throughput(of_a).text(0), samples.p50(of_a).text(1), samples.p99(of_a).text(1))
        rows.append((what, *figures, rates.text(1) if what != "alone" else "-"))
    columns = ("BERT-base meanwhile", "MiniLM, requests/s", "p50 ms", "p99 ms", "times a second")
    report.tables.append(Table("one connection, 16 tokens", columns, rows))
    alone = samples.p99([sample for sample, _ in taken["alone"]])
    for what, goal in GOALS.items():
        ours = samples.p99([sample for sample, _ in taken[what]])
        report.goals.append(Goal.ratio(f"p99 while the other {what}, over alone", Ratio(ours, alone), goal, "most"))
    report.notes.append("sinks and rises: each rise is there for a call of 3 tokens, whose computing is part of it.")
