"""One sample of a server under load: the load generator's outcome, and what the machine spent meanwhile."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from bench import processes
from bench.load import Latencies, Outcome, Spec, drive
from bench.pairs import Series
from bench.peers.server import PeerFailed, Server


@dataclass(frozen=True, slots=True)
class Sample:
    """outcome: of the load generator. cpu_us: CPU time of all the server's processes per answer, microseconds.

    others: share of all cores used by neither server nor generator, so that noise from elsewhere can be seen.
    cpu_us_by_process: the same by what the process is.
    """

    outcome: Outcome
    cpu_us: float
    cpu_us_by_process: dict[str, float]
    others: float


def take(server: Server, spec: Spec) -> Sample:
    """Drive ``spec`` against ``server``. Raises PeerFailed when an answer was wrong: its speed means nothing then."""
    pids, began = server.pids(), time.monotonic()
    cpu, machine = {pid: processes.cpu_seconds([pid]) for pid in pids}, processes.machine_busy_seconds()
    outcome = drive(spec)
    wall = time.monotonic() - began
    by_pid = {pid: processes.cpu_seconds([pid]) - before for pid, before in cpu.items()}
    spent = sum(by_pid.values())
    if outcome.errors:
        raise PeerFailed(f"{server.name}: {outcome.errors} errors; the first: {outcome.first_error}\n{server.log()}")
    answered = max(1, outcome.answered)
    by_process: dict[str, float] = {}
    for pid, seconds in by_pid.items():
        name = processes.label(pid)
        by_process[name] = round(by_process.get(name, 0.0) + seconds / answered * 1e6, 1)
    busy = processes.machine_busy_seconds() - machine
    client = outcome.client_cpu * (spec.seconds + spec.warmup_s)
    return Sample(
        outcome=outcome,
        cpu_us=round(spent / answered * 1e6, 1),
        cpu_us_by_process=dict(by_process),
        others=round(max(0.0, busy - spent - client) / wall / (os.cpu_count() or 1), 3),
    )


def throughput(samples: list[Sample]) -> Series:
    """Return right answers a second, one a round."""
    return Series(tuple(sample.outcome.per_s for sample in samples))


def p99(samples: list[Sample], *, ping: bool = False) -> Series:
    """Return the 99th percentile in ms, of answers or of /ping, one a round."""
    return Series(tuple(_p99(sample.outcome.ping if ping else sample.outcome.latency) for sample in samples))


def p99_ms(sample: Sample) -> float:
    """Return the 99th percentile of the answers in ms."""
    return _p99(sample.outcome.latency)


def p50(samples: list[Sample]) -> Series:
    """Return the median latency in ms, one a round."""
    return Series(tuple(sample.outcome.latency.p50_ms or float("inf") for sample in samples))


def cpu(samples: list[Sample]) -> Series:
    """Return the server's CPU time per answer in microseconds, one a round."""
    return Series(tuple(sample.cpu_us for sample in samples))


def by_process(samples: list[Sample]) -> str:
    """Return the last sample's CPU microseconds an answer by process, the greatest first."""
    shares = sorted(samples[-1].cpu_us_by_process.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {micros:.0f}" for name, micros in shares if micros >= 0.5)


def _p99(latencies: Latencies) -> float:
    return latencies.p99_ms if latencies.p99_ms is not None else float("inf")


def noise(samples: list[Sample]) -> str:
    """Return the largest share of the cores that others used, as text."""
    return f"{max(sample.others for sample in samples):.0%}"
