"""Requests that come at a rate, whatever the server says (open loop): what overload is made of.

A request is sent when it is due, on a connection that is idle, else on a new one up to a cap; its time counts from when
it was due. The rate follows phases, so that one run shows calm, overload and what comes after. A process of its own, as
``bench/load``.
"""

from __future__ import annotations

import dataclasses
import json
import select
import subprocess
import sys
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from bench.load import Call, Latencies, Line

#: Of one curve point.
BIN_S = 0.5
_DRAIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Phase:
    """``rate`` requests a second for ``seconds``."""

    rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. within_s: an answer that takes longer has come too late for its caller."""

    port: int
    calls: list[Call]
    phases: list[Phase]
    within_s: float
    connections: int = 600
    ping_every_s: float = 0.05


@dataclass(slots=True)
class Came:
    """What came of one phase, counted by when requests were due.

    right_per_s: right answers in time, a second. accepted: all that were not refused (503); in_time: of these. unsent:
    due while all connections were in use. refusal: how long refusals took.
    """

    right_per_s: float
    sent: int
    accepted: int
    in_time: int
    statuses: dict[str, int]
    unsent: int
    answered: Latencies
    refusal: Latencies
    ping: Latencies


@dataclass(slots=True)
class Story:
    """One run. bins: (second, in time, refused, else) for each BIN_S; recovered_s: see ``_recovered``."""

    came: list[Came]
    bins: list[tuple[float, int, int, int]]
    recovered_s: float
    client_cpu: float
    first_error: str


@dataclass(slots=True)
class _Tally:
    statuses: Counter[str] = field(default_factory=Counter)
    in_time: int = 0
    unsent: int = 0
    right: array[int] = field(default_factory=lambda: array("q"))
    refused: array[int] = field(default_factory=lambda: array("q"))
    ping: array[int] = field(default_factory=lambda: array("q"))


class Arrivals:
    """One run of a Plan: ``Arrivals(plan).run()``."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._raw = [call.raw(plan.port) for call in plan.calls]
        self._ping = Call("/ping", method="GET").raw(plan.port)
        self._epoll = select.epoll()
        self._lines: dict[int, Line] = {}
        self._idle: list[Line] = []
        self._due: dict[Line, tuple[int, int]] = {}
        self._tallies = [_Tally() for _ in plan.phases]
        self._bins: dict[int, list[int]] = {}
        self._turn = 0
        self._late_refusals: list[int] = []
        self._first_error = ""

    def run(self) -> Story:
        """Do it. Raises OSError when nothing listens on the port."""
        cpu, self._began = time.process_time(), time.perf_counter_ns()
        self._pinger = Line(self._plan.port, is_ping=True)
        self._watch(self._pinger)
        self._next_ping = self._began
        start = self._began
        for number, phase in enumerate(self._plan.phases):
            end = start + int(phase.seconds * 1e9)
            self._send_until(end, start, number, 1e9 / phase.rate)
            start = end
        give_up = start + int(_DRAIN_S * 1e9)
        while self._due and time.perf_counter_ns() < give_up:
            self._take(0.05)
        wall_s = (time.perf_counter_ns() - self._began) / 1e9
        for line in self._lines.values():
            line.sock.close()
        return self._story((time.process_time() - cpu) / wall_s)

    def _send_until(self, end: int, due: float, phase: int, gap_ns: float) -> None:
        while (now := time.perf_counter_ns()) < end:
            while due <= now:
                self._send(int(due), phase)
                due += gap_ns
            if now >= self._next_ping and not self._pinger.busy:
                self._next_ping = now + int(self._plan.ping_every_s * 1e9)
                self._due[self._pinger] = (now, phase)
                self._pinger.send(self._ping)
            self._take(max(0.0, min(due, end) - time.perf_counter_ns()) / 1e9)

    def _watch(self, line: Line) -> None:
        self._lines[line.sock.fileno()] = line
        self._epoll.register(line.sock.fileno(), select.EPOLLIN)

    def _send(self, due: int, phase: int) -> None:
        if not self._idle:
            if len(self._lines) > self._plan.connections:
                self._tallies[phase].unsent += 1
                return
            line = Line(self._plan.port)
            self._watch(line)
            self._idle.append(line)
        line = self._idle.pop()
        self._turn = (self._turn + 1) % len(self._raw)
        self._due[line] = (due, phase)
        try:
            line.send(self._raw[self._turn])
        except OSError as error:
            self._broken(line, error)

    def _take(self, timeout_s: float) -> None:
        for fd, _ in self._epoll.poll(timeout_s):
            line = self._lines[fd]
            try:
                answer = line.receive()
            except BlockingIOError:
                continue
            except OSError as error:
                self._broken(line, error)
                continue
            if answer is not None:
                self._took(line, answer)

    def _took(self, line: Line, answer: bytes) -> None:
        now = time.perf_counter_ns()
        due, phase = self._due.pop(line)
        tally, took = self._tallies[phase], now - due
        if line.is_ping:
            tally.ping.append(took)
            return
        self._idle.append(line)
        status = answer[9:12].decode()
        in_time = status == "200" and took <= self._plan.within_s * 1e9
        self._count(tally, status, due, 0 if in_time else 1 if status == "503" else 2)
        if status == "503":
            tally.refused.append(took)
        elif status == "200":
            tally.right.append(took)
            tally.in_time += in_time
        else:
            self._first_error = self._first_error or answer[:300].decode("latin-1")

    def _count(self, tally: _Tally, status: str, due: int, kind: int) -> None:
        tally.statuses[status] += 1
        at = due - self._began
        self._bins.setdefault(int(at / 1e9 / BIN_S), [0, 0, 0])[kind] += 1
        if kind:
            self._late_refusals.append(at)

    def _broken(self, line: Line, error: OSError) -> None:
        due, phase = self._due.pop(line, (0, 0))
        del self._lines[line.sock.fileno()]
        line.sock.close()
        if due:
            self._first_error = self._first_error or repr(error)
            self._count(self._tallies[phase], "broken", due, 2)

    def _story(self, client_cpu: float) -> Story:
        came = []
        for phase, tally in zip(self._plan.phases, self._tallies, strict=True):
            sent = tally.statuses.total()
            came.append(
                Came(
                    right_per_s=round(tally.in_time / phase.seconds, 2),
                    sent=sent,
                    accepted=sent - tally.statuses["503"],
                    in_time=tally.in_time,
                    statuses=dict(tally.statuses),
                    unsent=tally.unsent,
                    answered=Latencies.of(tally.right),
                    refusal=Latencies.of(tally.refused),
                    ping=Latencies.of(tally.ping),
                )
            )
        bins = [(round(at * BIN_S, 2), *counts) for at, counts in sorted(self._bins.items())]
        return Story(came, bins, self._recovered(), round(client_cpu, 3), self._first_error)  # type: ignore[arg-type]

    def _recovered(self) -> float:
        """Return how long into the last phase requests were still refused, late or broken; 0 for none."""
        began_last = int(sum(phase.seconds for phase in self._plan.phases[:-1]) * 1e9)
        return round(max([0, *(at - began_last for at in self._late_refusals)]) / 1e9, 3)


def drive(plan: Plan) -> Story:
    """Run ``plan`` in a process of its own. Raises RuntimeError with what it printed when that fails."""
    text = json.dumps(dataclasses.asdict(plan))
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "bench.arrivals"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=root, check=False)
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr.strip()[-500:]}")
    fields = json.loads(done.stdout)
    fields["came"] = [
        Came(**{**each, **{name: Latencies(**each[name]) for name in ("answered", "refusal", "ping")}})
        for each in fields["came"]
    ]
    return Story(**fields)


def main() -> int:
    """Print the Story of the Plan on stdin, both as JSON."""
    fields = json.loads(sys.stdin.read())
    fields["calls"] = [Call(**call) for call in fields["calls"]]
    fields["phases"] = [Phase(**phase) for phase in fields["phases"]]
    print(json.dumps(dataclasses.asdict(Arrivals(Plan(**fields)).run())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
