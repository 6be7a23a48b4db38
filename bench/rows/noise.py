"""What a model feels of another one: p99 of MiniLM while BERT-base loads, sinks and rises, over MiniLM alone.

The other model (438 MB) does one thing over and over, on one connection: POST and DELETE; the same with a script of
its own, which loads it with transformers; or two of them called in turn where only one has room. Four times a second is
judged; as fast as it goes, where it computes and copies on the cores that MiniLM has alone otherwise, is shown beside.

A p99 of a few hundred requests moves, and so does the machine: MiniLM alone is measured before and after each short
sample, fifteen times for each noise rather than five, and the middle of the fifteen ratios counts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

from bench import archives, samples, texts
from bench.load import Spec
from bench.pairs import Between, Series, alternate, between, over
from bench.peers.berth import Berth
from bench.report import Goal, Options, Report, Table
from bench.samples import Sample

TITLE = "p99 of one model while another comes and goes"
_A = "minilm"
_BODY = json.dumps({"inputs": "hi"}).encode()
#: what the other does -> goal
GOALS = {"loads": 1.5, "sinks and rises": 1.5, "loads, with code": 2.0}
_EVERY_S, _FAST, _WARMUP_S = 0.25, ", without a pause", 0.5
#: Of the usual length of a sample.
_PART = 0.6
#: A sample of the model, and how often a second the noise was made meanwhile.
Noisy = tuple[Sample, float]


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
        noises: dict[str, Callable[[], None]] = {
            "loads": comes_and_goes("plain"),
            "sinks and rises": lambda: _called(server, next(turn)),
            "loads, with code": comes_and_goes("coded"),
        }
        comes_and_goes("coded")()  # the child that runs scripts starts, and imports transformers

        def measure(what: str) -> Noisy:
            turning = what.startswith("sinks and rises")
            for name, folder in (("one", one), ("two", two)) if turning else ():
                server.post_model(name, folder)
            noise = noises[what.removesuffix(_FAST)]
            taken = _beside(server, noise, 0.0 if what.endswith(_FAST) else _EVERY_S, options)
            for name in ("one", "two") if turning else ():
                server.unload(name)
            return taken

        def contenders(suffix: str) -> dict[str, Callable[[], Noisy]]:
            return {f"{what}{suffix}": functools.partial(measure, f"{what}{suffix}") for what in noises}

        taken = between(lambda: _beside(server, None, 0.0, options)[0], contenders(""), 3 * options.rounds)
        fast = alternate(contenders(_FAST), max(1, options.rounds // 2))
    _show(report, taken, fast)
    return report


def _called(server: Berth, name: str) -> None:
    server.invoke(name, _BODY)


def _beside(server: Berth, noise: Callable[[], None] | None, every_s: float, options: Options) -> Noisy:
    """Return a sample of the model, and how often a second the noise was made meanwhile."""
    calls = [server.invocation(_A, body) for body in texts.bodies(64)]
    seconds = _PART * options.seconds
    with _making(noise, every_s) as times:
        sample = samples.take(server, Spec(server.port, calls, 1, seconds, _WARMUP_S))
    return sample, times[0] / (seconds + _WARMUP_S)


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


def _show(report: Report, taken: dict[str, list[Between[Sample, Noisy]]], fast: dict[str, list[Noisy]]) -> None:
    alone = [sample for several in taken.values() for each in several for sample in (each.before, each.after)]
    report.samples["alone"] = [dataclasses.asdict(sample) for sample in alone]
    rows = [("alone", *_figures(alone), "-")]
    for what, beside in ({what: [each.of for each in several] for what, several in taken.items()} | fast).items():
        report.samples[what] = [(dataclasses.asdict(sample), rate) for sample, rate in beside]
        rates = Series(tuple(rate for _, rate in beside))
        rows.append((what, *_figures([sample for sample, _ in beside]), rates.text(1)))
    columns = ("BERT-base meanwhile", "MiniLM, requests/s", "p50 ms", "p99 ms", "times a second")
    report.tables.append(Table("one connection, 16 tokens", columns, rows))
    for what, goal in GOALS.items():
        ratio = over(taken[what], lambda noisy: samples.p99_ms(noisy[0]), samples.p99_ms)
        report.goals.append(Goal.ratio(f"p99 while the other {what}, over alone", ratio, goal, "most"))
    report.notes.append("sinks and rises: each rise is there for a call of 3 tokens, whose computing is part of it.")


def _figures(of_a: list[Sample]) -> tuple[str, str, str]:
    return samples.throughput(of_a).text(0), samples.p50(of_a).text(1), samples.p99(of_a).text(1)
