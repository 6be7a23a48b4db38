"""More than the server can do: all-MiniLM-L6-v2 with a second to answer in, at 2 and 10 times its capacity.

The requests come at their rate whatever the server says, from a client on the same cores. Capacity is what the closed
loop of 32 connections gets. What a refusal costs is taken from another model, which sleeps instead of computing, so
that all CPU time is the server's own.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from bench import archives, load, processes, texts
from bench.arrivals import Phase, Plan, Story, drive
from bench.pairs import Ratio, Series, alternate
from bench.peers.berth import Berth
from bench.peers.server import Server
from bench.plot import Line, Panel, svg
from bench.report import Goal, Options, Report, Table

TITLE = "2 and 10 times the capacity, a second to answer in"
WITHIN_S = 1.0
MIB = 2**20
#: Requests a second to the model that sleeps: what it can answer, and what it is asked.
CAPACITY_PER_S = 50.0
REFUSED_PER_S = 2000.0
_MODEL = "minilm-1s"


def run(options: Options) -> Report:
    """Measure peak, twice and ten times the capacity in turn, then ten times for a minute, then a refusal's cost."""
    report = Report("overload", TITLE)
    with ExitStack() as stack:
        server = stack.enter_context(Berth())
        server.load(_MODEL, archives.minilm_in_time(WITHIN_S))
        calls = [server.invocation(_MODEL, body) for body in texts.bodies(256)]
        peak = _closed(server, calls, 3.0)
        contenders: dict[str, Callable[[], Any]] = {
            "peak": lambda: _closed(server, calls, options.seconds),
            "2 x": lambda: _burst(server, calls, 2 * peak, options.seconds, peak),
            "10 x": lambda: _burst(server, calls, 10 * peak, options.seconds, peak),
        }
        taken = alternate(contenders, options.rounds)
        with _memory(server) as seen:
            minute = _burst(server, calls, 10 * peak, 6 if options.quick else 60, peak)
    with Berth() as server:
        refusal = _refusals(server, options.seconds)
    _tell(report, taken, minute, seen, refusal)
    report.plots = {"overload": _plot(minute, peak, seen)}
    report.samples = {
        "peak_per_s": taken["peak"],
        "rounds": {name: [dataclasses.asdict(one) for one in taken[name]] for name in ("2 x", "10 x")},
        "minute": dataclasses.asdict(minute),
        "memory_mib": seen,
        "refusal": refusal,
    }
    return report


def _closed(server: Server, calls: list[Any], seconds: float) -> float:
    """Return right answers a second; on a machine that others use a few may be refused, and are not counted."""
    return load.drive(load.Spec(server.port, calls, 32, seconds, 1.0)).per_s


def _burst(server: Server, calls: list[Any], rate: float, seconds: float, peak: float) -> Story:
    """Half the capacity, then ``rate`` for ``seconds``, then half the capacity again."""
    calm = Phase(0.5 * peak, 2.0)
    return drive(Plan(server.port, calls, [calm, Phase(rate, seconds), calm], WITHIN_S))


@contextmanager
def _memory(server: Server) -> Iterator[list[float]]:
    """Note the MiB of all processes' own memory every second until the block ends."""
    seen: list[float] = []
    over = threading.Event()
    pids = server.pids()

    def look() -> None:
        while not over.wait(1.0):
            seen.append(round(processes.pss_bytes(pids, "Pss_Anon") / MIB, 1))

    seen.append(round(processes.pss_bytes(pids, "Pss_Anon") / MIB, 1))
    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _refusals(server: Server, seconds: float) -> dict[str, Any]:
    """Return what one refusal costs in CPU microseconds, by process: what full use of the model costs is taken off."""
    server.load("sleeps", archives.sleeps(WITHIN_S))
    call = server.invocation("sleeps", archives.ECHO_BODY)
    calm = Phase(25.0, 2.0)
    drive(Plan(server.port, [call], [calm], WITHIN_S))  # so that its pace is known
    full, _ = _spent(server, Plan(server.port, [call], [calm, Phase(CAPACITY_PER_S, seconds), calm], WITHIN_S))
    over, story = _spent(server, Plan(server.port, [call], [calm, Phase(REFUSED_PER_S, seconds), calm], WITHIN_S))
    refused = max(1, sum(came.statuses.get("503", 0) for came in story.came))
    spent = {name: round((over[name] - full.get(name, 0.0)) / refused * 1e6, 1) for name in over}
    return {"cpu_us": round(sum(spent.values()), 1), "by_process": spent, "story": dataclasses.asdict(story)}


def _spent(server: Server, plan: Plan) -> tuple[dict[str, float], Story]:
    """Return the CPU seconds of the server's processes by name while ``plan`` was carried out, and what came of it."""
    before = {pid: processes.cpu_seconds([pid]) for pid in server.pids()}
    story = drive(plan)
    spent: dict[str, float] = {}
    for pid, then in before.items():
        name = processes.label(pid)
        spent[name] = spent.get(name, 0.0) + processes.cpu_seconds([pid]) - then
    return spent, story


def _tell(report: Report, taken: dict[str, list[Any]], minute: Story, seen: list[float], refusal: Any) -> None:
    peak = Series(tuple(taken["peak"]))
    rows = [("peak, closed loop of 32", peak.text(0), "-", "-", "-", "-", "-", "-")]
    for name in ("2 x", "10 x"):
        rows.append(_row(name, taken[name]))
        goodput = Ratio(Series(tuple(story.came[1].right_per_s for story in taken[name])), peak)
        report.goals.append(
            Goal.ratio(f"answers in time over the peak, {name}", goodput, 0.95 if name == "2 x" else 0.8)
        )
    rows.append(_row("10 x, the long run", [minute]))
    columns = ("", "in time/s", "of the accepted", "p99 ms", "refused", "refusal p99 ms", "/ping p99 ms", "recovery s")
    report.tables.append(Table("right answers within 1 s of when they were due", columns, rows))
    stories = [*taken["2 x"], *taken["10 x"], minute]
    late = sum(came.accepted - came.in_time for story in stories for came in story.came[1:])
    accepted = sum(came.accepted for story in stories for came in story.came[1:])
    report.goals += [
        _least("accepted ones in time", 100 * (1 - late / max(1, accepted)), 99.99, "%"),
        Goal.most("CPU a refusal, all processes", Series((refusal["cpu_us"],)), 50, "µs"),
        Goal.most("/ping p99 meanwhile", Series(tuple(s.came[1].ping.p99_ms or 1e9 for s in stories)), 100, "ms"),
        Goal.most("recovery after the overload", Series(tuple(story.recovered_s for story in stories)), 1, "s", 2),
        Goal.most("memory at its highest over before", Series((max(seen) - seen[0],)), 100, "MiB"),
    ]
    split = ", ".join(f"{name} {us:.0f}" for name, us in sorted(refusal["by_process"].items(), key=lambda i: -i[1]))
    report.notes += [
        f"CPU µs a refusal by process: {split}; {refusal['story']['came'][1]['statuses']} answers by status.",
        f"The client took up to {max(story.client_cpu for story in stories):.2f} of one core, of the same two.",
        f"Errors beside 503: {next((s.first_error for s in stories if s.first_error), 'none')}",
        "recovery: how long after the overload a request was still refused, late or broken.",
    ]


def _row(name: str, stories: list[Story]) -> tuple[str, ...]:
    came = [story.came[1] for story in stories]
    accepted, in_time = sum(c.accepted for c in came), sum(c.in_time for c in came)
    return (
        name,
        Series(tuple(c.right_per_s for c in came)).text(0),
        f"{100 * in_time / max(1, accepted):.2f} %",
        Series(tuple(c.answered.p99_ms or 0.0 for c in came)).text(0),
        f"{sum(c.statuses.get('503', 0) for c in came):,}",
        Series(tuple(c.refusal.p99_ms or 0.0 for c in came)).text(1),
        Series(tuple(c.ping.p99_ms or 0.0 for c in came)).text(1),
        Series(tuple(story.recovered_s for story in stories)).text(2),
    )


def _least(figure: str, found: float, wanted: float, unit: str) -> Goal:
    return Goal(
        figure, f"at least {wanted:g} {unit}", f"{found:.3f} {unit}", "reached" if found >= wanted else "missed"
    )


def _plot(story: Story, peak: float, seen: list[float]) -> str:
    per_s = [(at, in_time / 0.5, refused / 0.5, other / 0.5) for at, in_time, refused, other in story.bins]
    end = max((at for at, *_ in per_s), default=1.0) + 0.5
    panels = [
        Panel(
            "answers a second",
            [
                Line("in time", [(at, good) for at, good, _, _ in per_s]),
                Line("late or broken", [(at, other) for at, _, _, other in per_s]),
                Line("the peak", [(0.0, peak), (end, peak)]),
            ],
        ),
        Panel("refusals a second", [Line("503 at once", [(at, refused) for at, _, refused, _ in per_s])]),
        Panel("memory of all processes, MiB", [Line("anonymous", list(enumerate(seen)))]),
    ]
    return svg("Half the capacity, ten times the capacity, half again", panels, "seconds", end)
