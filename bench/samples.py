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
    """

    outcome: Outcome
    cpu_us: float
    others: float


def take(server: Server, spec: Spec) -> Sample:
    """Drive ``spec`` against ``server``. Raises PeerFailed when an answer was wrong: its speed means nothing then."""
    pids, began = server.pids(), time.monotonic()
    cpu, machine = processes.cpu_seconds(pids), processes.machine_busy_seconds()
    outcome = drive(spec)
    wall = time.monotonic() - began
    spent = processes.cpu_seconds(pids) - cpu
    if outcome.errors:
        raise PeerFailed(f"{server.name}: {outcome.errors} errors; the first: {outcome.first_error}\n{server.log()}")
    busy = processes.machine_busy_seconds() - machine
    client = outcome.client_cpu * (spec.seconds + spec.warmup_s)
    return Sample(
        outcome=outcome,
        cpu_us=round(spent / max(1, outcome.answered) * 1e6, 1),
        others=round(max(0.0, busy - spent - client) / wall / (os.cpu_count() or 1), 3),
    )


def throughput(samples: list[Sample]) -> Series:
    """Return right answers a second, one a round."""
    return Series(tuple(sample.outcome.per_s for sample in samples))


def p99(samples: list[Sample], *, ping: bool = False) -> Series:
    """Return the 99th percentile in ms, of answers or of /ping, one a round."""
    return Series(tuple(_p99(sample.outcome.ping if ping else sample.outcome.latency) for sample in samples))


def p50(samples: list[Sample]) -> Series:
    """Return the median latency in ms, one a round."""
    return Series(tuple(sample.outcome.latency.p50_ms or float("inf") for sample in samples))


def cpu(samples: list[Sample]) -> Series:
    """Return the server's CPU time per answer in microseconds, one a round."""
    return Series(tuple(sample.cpu_us for sample in samples))


def _p99(latencies: Latencies) -> float:
    return latencies.p99_ms if latencies.p99_ms is not None else float("inf")


def noise(samples: list[Sample]) -> str:
    """Return the largest share of the cores that others used, as text."""
    return f"{max(sample.others for sample in samples):.0%}"
