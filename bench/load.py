"""A lean load generator: C connections, each sending its next request when the last answer is in (closed loop).

It runs in a process of its own and speaks HTTP/1.1 over raw sockets and one epoll, because on a small machine the
client's own work is taken from the server's: about 15 µs a request here. An optional further connection asks
``GET /ping`` at a fixed pace meanwhile, as the platform does.

    python -m bench.load --port 8080 --path /models/a/invoke --body '{"inputs": "hello"}' --connections 8 --seconds 5

Does not cover: open-loop arrivals, TLS, bodies that are streamed.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import select
import socket
import subprocess
import sys
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

#: What the platform waits for an answer to /ping.
PING_LIMIT_S = 2.0
#: How long requests still in flight at the end may take to finish; they are not counted.
DRAIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request. body: bytes as base64 text, so that a list of calls travels as JSON."""

    path: str
    body: str = ""
    method: str = "POST"
    content_type: str = "application/json"

    @staticmethod
    def post(path: str, body: bytes, content_type: str = "application/json") -> Call:
        """Return a POST of ``body``."""
        return Call(path, base64.b64encode(body).decode(), "POST", content_type)

    def raw(self, port: int) -> bytes:
        """Return the request as it goes over the socket."""
        body = base64.b64decode(self.body)
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
        if self.method == "POST":
            lines += [f"Content-Type: {self.content_type}", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(frozen=True, slots=True)
class Spec:
    """What to do: send ``calls`` in turn over ``connections`` for ``warmup_s`` (not counted) and ``seconds``."""

    port: int
    calls: list[Call]
    connections: int = 1
    seconds: float = 3.0
    warmup_s: float = 0.5
    ping_every_s: float = 0.0


@dataclass(slots=True)
class Latencies:
    """Milliseconds of answered requests by percentile; None where nothing was answered."""

    count: int = 0
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None

    @staticmethod
    def of(nanoseconds: array[int]) -> Latencies:
        """Return the percentiles of ``nanoseconds`` (nearest rank)."""
        if not nanoseconds:
            return Latencies()
        ordered = sorted(nanoseconds)
        last = len(ordered) - 1
        p50, p90, p99, top = (round(ordered[min(last, int(last * q + 0.5))] / 1e6, 3) for q in (0.5, 0.9, 0.99, 1.0))
        return Latencies(len(ordered), p50, p90, p99, top)


@dataclass(slots=True)
class Outcome:
    """What came of a run.

    per_s: right answers (2xx) a second, within the counted seconds. errors: other answers and broken connections in
    the whole run; first_error: the first of them, cut. answered: all answers of the whole run, warm-up included
    (what the server's CPU time is divided by). client_cpu: share of one core the generator itself used.
    """

    per_s: float
    latency: Latencies
    ping: Latencies
    errors: int
    first_error: str
    statuses: dict[str, int]
    answered: int
    client_cpu: float
    late_pings: int = 0


class Line:
    """One keep-alive connection: its socket, what has come of the answer, when the request went out."""

    __slots__ = ("buffer", "busy", "connected", "is_ping", "needs", "port", "sent_ns", "sock")

    def __init__(self, port: int, is_ping: bool = False) -> None:
        self.port, self.is_ping, self.busy = port, is_ping, False
        self.connect()

    def connect(self) -> None:
        """Open the connection, a new one after a broken one. Raises OSError."""
        self.sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.buffer, self.needs, self.busy = b"", 0, False

    def send(self, raw: bytes) -> None:
        """Send a request and note when."""
        self.busy, self.sent_ns = True, time.perf_counter_ns()
        sent = self.sock.send(raw)
        while sent < len(raw):  # a body larger than the socket's buffer: wait for room
            select.select([], [self.sock], [], 10)
            sent += self.sock.send(raw[sent:])

    def receive(self) -> bytes | None:
        """Return the whole answer once it is there, else None. Raises ConnectionError when the server hangs up."""
        data = self.sock.recv(1 << 18)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self.buffer = data if not self.buffer else self.buffer + data
        if not self.needs:
            self.needs = _length(self.buffer)
        if self.needs == 0 or (self.needs > 0 and len(self.buffer) < self.needs):
            return None
        if self.needs < 0 and not self.buffer.endswith(b"0\r\n\r\n"):
            return None
        answer, self.buffer, self.needs, self.busy = self.buffer, b"", 0, False
        return answer


def _length(buffer: bytes) -> int:
    """Return the bytes of the whole answer, 0 while its head is incomplete, -1 when it comes in chunks."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return 0
    head = buffer[:end].lower()
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        return -1 if b"\r\ntransfer-encoding: chunked" in head else end + 4
    stop = head.find(b"\r\n", at + 2)
    return end + 4 + int(head[at + 17 : stop if stop > 0 else len(head)])


@dataclass(slots=True)
class _Tally:
    """What is counted while a run goes on."""

    latency: array[int] = field(default_factory=lambda: array("q"))
    ping: array[int] = field(default_factory=lambda: array("q"))
    statuses: Counter[str] = field(default_factory=Counter)
    errors: int = 0
    first_error: str = ""

    def error(self, text: str) -> None:
        self.errors += 1
        self.first_error = self.first_error or text[:300]


class Generator:
    """One run of a Spec: ``Generator(spec).run()``."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._raw = [call.raw(spec.port) for call in spec.calls]
        self._ping = Call("/ping", method="GET").raw(spec.port)
        self._next = 0
        self._tally = _Tally()
        self._epoll = select.epoll()
        self._lines: dict[int, Line] = {}

    def run(self) -> Outcome:
        """Do it and return the Outcome. Raises OSError when nothing listens on the port."""
        spec, cpu = self._spec, time.process_time()
        began = time.perf_counter_ns()
        counted_from = began + int(spec.warmup_s * 1e9)
        end = counted_from + int(spec.seconds * 1e9)
        for _ in range(spec.connections):
            self._add(Line(spec.port)).send(self._take())
        pinger = self._add(Line(spec.port, is_ping=True)) if spec.ping_every_s else None
        self._serve(counted_from, end, pinger)
        wall = (time.perf_counter_ns() - began) / 1e9
        for line in self._lines.values():
            line.sock.close()
        self._epoll.close()
        tally = self._tally
        return Outcome(
            per_s=round(len(tally.latency) / spec.seconds, 2),
            latency=Latencies.of(tally.latency),
            ping=Latencies.of(tally.ping),
            errors=tally.errors,
            first_error=tally.first_error,
            statuses=dict(tally.statuses),
            answered=tally.statuses.total(),
            client_cpu=round((time.process_time() - cpu) / wall, 3),
            late_pings=sum(1 for ns in tally.ping if ns > PING_LIMIT_S * 1e9),
        )

    def _take(self) -> bytes:
        raw = self._raw[self._next]
        self._next = (self._next + 1) % len(self._raw)
        return raw

    def _add(self, line: Line) -> Line:
        self._lines[line.sock.fileno()] = line
        self._epoll.register(line.sock.fileno(), select.EPOLLIN)
        return line

    def _serve(self, counted_from: int, end: int, pinger: Line | None) -> None:
        pace, next_ping = int(self._spec.ping_every_s * 1e9), counted_from
        while True:
            now = time.perf_counter_ns()
            if now >= end:
                busy = any(line.busy for line in self._lines.values() if not line.is_ping)
                if not busy or now > end + DRAIN_S * 1e9:
                    return
            elif pinger is not None and not pinger.busy and now >= next_ping:
                next_ping = now + pace
                pinger.send(self._ping)
            timeout = 0.05 if pinger is None else min(0.05, max(0.0, (next_ping - now) / 1e9))
            for fd, _ in self._epoll.poll(timeout):
                self._answer(self._lines[fd], counted_from, end)

    def _answer(self, line: Line, counted_from: int, end: int) -> None:
        try:
            answer = line.receive()
        except BlockingIOError:
            return
        except OSError as error:
            self._again(line, f"{type(error).__name__}: {error}", end)
            return
        if answer is None:
            return
        now = time.perf_counter_ns()
        good = answer[9:10] == b"2"
        if line.is_ping:
            if good:
                self._tally.ping.append(now - line.sent_ns)
            else:
                self._tally.error("/ping: " + answer[:200].decode("latin-1"))
            return
        self._tally.statuses[answer[9:12].decode()] += 1
        if not good:
            self._tally.error(answer.decode("latin-1"))
        elif counted_from <= now < end:
            self._tally.latency.append(now - line.sent_ns)
        if now < end:
            try:
                line.send(self._take())
            except OSError as error:
                self._again(line, f"{type(error).__name__}: {error}", end)

    def _again(self, line: Line, why: str, end: int) -> None:
        """Replace a broken connection; a request that was in flight on it is an error."""
        if line.busy:
            self._tally.error(why)
        del self._lines[line.sock.fileno()]
        line.sock.close()
        line.connect()
        self._add(line)
        if not line.is_ping and time.perf_counter_ns() < end:
            line.send(self._take())


def drive(spec: Spec) -> Outcome:
    """Run ``spec`` in a process of its own. Raises RuntimeError with what it printed when that fails."""
    command = [sys.executable, "-m", "bench.load", "--spec", "-"]
    root = Path(__file__).parent.parent
    text = json.dumps(dataclasses.asdict(spec))
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=root, check=False)
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr.strip()[-500:]}")
    fields = json.loads(done.stdout)
    for name in ("latency", "ping"):
        fields[name] = Latencies(**fields[name])
    return Outcome(**fields)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__.splitlines()[0])
    parser.add_argument("--spec", help="a file with a Spec as JSON, - for stdin; the other options are then unused")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--path", default="/invocations")
    parser.add_argument("--body", default="{}")
    parser.add_argument("--content-type", default="application/json")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--warmup", type=float, default=0.5, help="seconds that are not counted")
    parser.add_argument("--ping-every", type=float, default=0.0, help="seconds between GET /ping; 0 = none")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the Outcome of the run that ``argv`` asks for, as JSON."""
    options = _parser().parse_args(argv)
    if options.spec:
        text = sys.stdin.read() if options.spec == "-" else Path(options.spec).read_text()
        fields = json.loads(text)
        fields["calls"] = [Call(**call) for call in fields["calls"]]
        spec = Spec(**fields)
    else:
        call = Call.post(options.path, options.body.encode(), options.content_type)
        spec = Spec(options.port, [call], options.connections, options.seconds, options.warmup, options.ping_every)
    print(json.dumps(dataclasses.asdict(Generator(spec).run())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
