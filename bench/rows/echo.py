"""The front alone: a model that does nothing, 100 bytes of JSON, 1, 8 and 32 connections, /ping asked meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack

from bench import archives, samples
from bench.load import Spec
from bench.pairs import Ratio, Series, alternate
from bench.peers.berth import Berth
from bench.peers.echo import Echo
from bench.peers.mms import Mms
from bench.peers.server import PeerFailed, Server
from bench.report import Goal, Options, Report, Table
from bench.samples import Sample

TITLE = "no-op model, 100-byte JSON"
CONNECTIONS = (1, 8, 32)
_MODEL = "noop"


def run(options: Options) -> Report:
    """Measure berth, multi-model-server and bare gunicorn in turn."""
    report = Report("echo", TITLE)
    with ExitStack() as stack:
        servers = [stack.enter_context(make()) for name, make in _CONTENDERS.items() if name in options.peers]
        for server in servers:
            _prepare(server)
        taken = {count: alternate(_contenders(servers, count, options), options.rounds) for count in CONNECTIONS}
    for count, by_peer in taken.items():
        report.tables.append(_table(count, by_peer))
        report.samples[str(count)] = {
            name: [dataclasses.asdict(sample) for sample in several] for name, several in by_peer.items()
        }
    report.goals = _goals(taken)
    report.notes.append("berth: the archive brings its code, so each request crosses front, engine and host child.")
    for count, by_peer in taken.items():
        for name, several in by_peer.items():
            report.notes.append(f"CPU µs by process, {name} at {count}: {samples.by_process(several)}")
    report.notes.append("CPU: user and system time of all the server's processes over the answers they gave.")
    return report


_CONTENDERS: dict[str, Callable[[], Server]] = {"echo": Echo, "mms": lambda: Mms("noop"), "berth": Berth}


def _prepare(server: Server) -> None:
    if not isinstance(server, Echo):
        server.load(_MODEL, archives.noop())
    if b"xxxx" not in server.invoke(_MODEL, archives.ECHO_BODY):
        raise PeerFailed(f"{server.name} does not echo")
    samples.take(server, Spec(server.port, [server.invocation(_MODEL, archives.ECHO_BODY)], 8, 2.0))


def _contenders(servers: list[Server], connections: int, options: Options) -> dict[str, Callable[[], Sample]]:
    def measure(server: Server) -> Sample:
        call = server.invocation(_MODEL, archives.ECHO_BODY)
        return samples.take(server, Spec(server.port, [call], connections, options.seconds, 0.5, ping_every_s=0.05))

    return {server.name: lambda server=server: measure(server) for server in servers}  # type: ignore[misc]


def _table(connections: int, by_peer: dict[str, list[Sample]]) -> Table:
    columns = ("", "requests/s", "p50 ms", "p99 ms", "CPU µs a request", "/ping p99 ms", "others")
    rows = [
        (
            name,
            samples.throughput(several).text(0),
            samples.p50(several).text(2),
            samples.p99(several).text(2),
            samples.cpu(several).text(0),
            samples.p99(several, ping=True).text(2),
            samples.noise(several),
        )
        for name, several in by_peer.items()
    ]
    return Table(f"{connections} connections", columns, rows)


def _goals(taken: dict[int, dict[str, list[Sample]]]) -> list[Goal]:
    if "berth" not in taken[32]:
        return []
    goals = []
    for count, times in ((8, 2.5), (32, 3.0)):
        if "mms" in taken[count]:
            ratio = Ratio(samples.throughput(taken[count]["berth"]), samples.throughput(taken[count]["mms"]))
            goals.append(Goal.ratio(f"requests/s over multi-model-server, {count} connections", ratio, times))
    ours = taken[32]["berth"]
    goals.append(Goal.most("p99 at 32 connections", samples.p99(ours), 8, "ms"))
    goals.append(Goal.most("CPU a request at 32 connections", samples.cpu(ours), 180, "µs", 0))
    pings = Series(tuple(value for by in taken.values() for value in samples.p99(by["berth"], ping=True).values))
    goals.append(Goal.most("/ping p99 meanwhile", pings, 100, "ms"))
    return goals
