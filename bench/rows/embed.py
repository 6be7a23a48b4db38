"""A real embedder, all-MiniLM-L6-v2, one sentence of 16 tokens a request, 1, 8 and 32 connections.

Beside it the bare loop with all cores at batches of 1, 8 and 32, tokenising counted: what the machine can do.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from bench import archives, samples, texts
from bench.load import Spec
from bench.pairs import Ratio, Series, alternate
from bench.peers.bare import Bare
from bench.peers.berth import Berth
from bench.peers.mms import Mms
from bench.peers.server import PeerFailed, Server
from bench.report import Goal, Options, Report, Table
from bench.samples import Sample

TITLE = "all-MiniLM-L6-v2, 16 tokens a request"
CONNECTIONS = (1, 8, 32)
SENTENCES = 256
DIMENSIONS = 384
_MODEL = "minilm"
_BARES = ("bare, spinning", "bare, passive")

Taken = dict[str, list[Any]]


def run(options: Options) -> Report:
    """Measure berth and multi-model-server at 1, 8 and 32 connections, the bare loop at the same batches."""
    report = Report("embed", TITLE)
    with ExitStack() as stack:
        makers: dict[str, Callable[[], Server]] = {"mms": lambda: Mms("bert"), "berth": Berth}
        servers = [stack.enter_context(make()) for name, make in makers.items() if name in options.peers]
        bares = [stack.enter_context(Bare(passive=passive)) for passive in (False, True) if "bare" in options.peers]
        for server in servers:
            _prepare(server)
        _agree(servers)
        taken = {count: alternate(_contenders(servers, bares, count, options), options.rounds) for count in CONNECTIONS}
    for count, by_peer in taken.items():
        report.tables.append(_table(count, by_peer))
        report.samples[str(count)] = {
            name: [dataclasses.asdict(one) if isinstance(one, Sample) else one for one in several]
            for name, several in by_peer.items()
        }
        report.goals += _goals(count, by_peer)
    report.notes.append("bare: the loop at a batch of as many sentences as there are connections; OpenMP waits so.")
    return report


def _prepare(server: Server) -> None:
    server.load(_MODEL, archives.minilm())
    samples.take(server, Spec(server.port, _calls(server), 8, 1.0))


def _agree(servers: list[Server]) -> None:
    """Raise PeerFailed unless all servers give the same vector for the same sentence (to 1e-4)."""
    body = texts.bodies(1)[0]
    vectors = {server.name: json.loads(server.invoke(_MODEL, body)) for server in servers}
    for name, vector in vectors.items():
        first = next(iter(vectors.values()))
        if len(vector) != DIMENSIONS or max(abs(a - b) for a, b in zip(first, vector, strict=True)) > 1e-4:
            raise PeerFailed(f"{name} answers another vector than {next(iter(vectors))}: {str(vector)[:200]}")


def _calls(server: Server) -> list[Any]:
    return [server.invocation(_MODEL, body) for body in texts.bodies(SENTENCES)]


def _contenders(
    servers: list[Server], bares: list[Bare], count: int, options: Options
) -> dict[str, Callable[[], Sample | float]]:
    def measure(server: Server) -> Sample:
        return samples.take(server, Spec(server.port, _calls(server), count, options.seconds, 1.0, ping_every_s=0.1))

    contenders: dict[str, Callable[[], Sample | float]] = {}
    for name, bare in zip(_BARES, bares, strict=False):
        contenders[name] = lambda bare=bare: bare.loop(  # type: ignore[misc]
            archives.minilm(), texts.sentences(SENTENCES), count, options.seconds
        )
    for server in servers:
        contenders[server.name] = lambda server=server: measure(server)  # type: ignore[misc]
    return contenders


def _rate(several: list[Any]) -> Series:
    if isinstance(several[0], Sample):
        return samples.throughput(several)
    return Series(tuple(several))


def _table(count: int, by_peer: Taken) -> Table:
    rows = []
    for name, several in by_peer.items():
        served = isinstance(several[0], Sample)
        rows.append(
            (
                name,
                _rate(several).text(0),
                samples.p99(several).text(1) if served else "-",
                f"{samples.cpu(several).median / 1e3:.1f}" if served else "-",
                samples.p99(several, ping=True).text(1) if served else "-",
                samples.noise(several) if served else "-",
            )
        )
    columns = ("", "sentences/s", "p99 ms", "CPU ms a sentence", "/ping p99 ms", "others")
    return Table(f"{count} connections", columns, rows)


def _goals(count: int, by_peer: Taken) -> list[Goal]:
    if "berth" not in by_peer:
        return []
    goals = []
    ours = _rate(by_peer["berth"])
    if _BARES[0] in by_peer:
        limit = Series(tuple(max(pair) for pair in zip(*(by_peer[name] for name in _BARES), strict=True)))
        goals.append(Goal.ratio(f"over the better bare loop, {count}", Ratio(ours, limit), 0.95))
    if count == max(CONNECTIONS):
        if "mms" in by_peer:
            goals.append(Goal.ratio(f"over multi-model-server, {count}", Ratio(ours, _rate(by_peer["mms"])), 5.7))
        goals.append(Goal.most(f"p99, {count}", samples.p99(by_peer["berth"]), 120, "ms"))
    return goals
