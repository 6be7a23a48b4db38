"""Callers of a soak: they ask at a pace, know each right answer, and know when a refusal has a cause.

A refusal (503, 504, 507, a connection that ends) is excused only while a fault is under way that can have caused it.
Others are counted for themselves: on a machine that others use, a process may start too late. Everything else that is
not the right answer to the right request is wrong.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.chaos.traffic import EXCUSES, Model
from tests.server import Server
from tests.soak.models import encode

#: How often each kind is asked beside the others; the rest once.
SHARES = {"embeds": 4, "weighs": 4, "tagged": 6, "comes": 0}
#: One in so many callers hangs up before the answer.
HANG_UP_EVERY = 37
#: Counted, and shown up to this many.
SHOWN = 30


@dataclass
class Window:
    """The time in which ``models`` may be refused, all if None; reload: or be unknown. Seconds of CLOCK_MONOTONIC."""

    models: frozenset[str] | None
    began: float
    end: float = float("inf")
    reload: bool = False


class Excuses:
    """When which models may be refused."""

    def __init__(self) -> None:
        self._windows: list[Window] = []
        #: When the front was last killed: connections made before are gone, though a client may not have noticed.
        self.front_died_s = 0.0

    @contextmanager
    def cover(self, *models: str, reload: bool = False) -> Iterator[Window]:
        """Excuse refusals of ``models`` (none named: all) from now until a second after the block.

        reload: they are unloaded and loaded anew, so that they may be unknown, too.
        """
        window = Window(frozenset(models) or None, time.monotonic(), reload=reload)
        self._windows.append(window)
        try:
            yield window
        finally:
            window.end = time.monotonic() + 1.0

    def hold(self, model: str, began: float, ended: float, *, reload: bool = False) -> bool:
        """Return whether a request to ``model`` between these times may have been refused, or found nobody."""
        self._windows = [window for window in self._windows if window.end > began - 120]
        return any(
            window.began <= ended
            and began <= window.end
            and (window.models is None or model in window.models)
            and (window.reload or not reload)
            for window in list(self._windows)
        )


@dataclass
class Log:
    """What was told and what was wrong with it."""

    codes: Counter[str] = field(default_factory=Counter)
    by_model: Counter[str] = field(default_factory=Counter)
    excused: int = 0
    hung_up: int = 0
    wrong: list[str] = field(default_factory=list)
    wrong_count: int = 0
    unexcused: list[str] = field(default_factory=list)
    unexcused_count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_wrong(self, what: str) -> None:
        """Keep what was wrong."""
        with self._lock:
            self.wrong_count += 1
            if len(self.wrong) < SHOWN:
                self.wrong.append(f"{time.strftime('%H:%M:%S')} {what}")

    def add_unexcused(self, what: str) -> None:
        """Keep a refusal that no fault explains: not wrong, and not as it should be either."""
        with self._lock:
            self.unexcused_count += 1
            if len(self.unexcused) < SHOWN:
                self.unexcused.append(f"{time.strftime('%H:%M:%S')} {what}")

    def add(self, name: str, code: str, *, excused: bool = False) -> None:
        """Count one answer."""
        with self._lock:
            self.codes[code] += 1
            self.excused += excused
            self.by_model[name] += not excused


class Caller:
    """One connection that asks and checks."""

    def __init__(self, server: Server, excuses: Excuses, log: Log, numbers: Iterator[int]) -> None:
        self._server = server
        self._excuses = excuses
        self._log = log
        self._numbers = numbers
        self._asked_s = 0.0
        self._link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=90)

    def ask(self, name: str, model: Model) -> int:
        """Ask ``name`` once and check the answer; return its status, 0 if the connection ended."""
        number, began = next(self._numbers), time.monotonic()
        if self._asked_s < self._excuses.front_died_s:
            self._link.close()
        self._asked_s = began
        status, body, answered_id = self._exchange(f"/models/{name}/invoke", encode(model, number), f"n{number}")
        reloaded = status == 404 and self._excuses.hold(name, began, time.monotonic(), reload=True)
        if status == 0 or status in EXCUSES or reloaded:
            excused = reloaded or self._excuses.hold(name, began, time.monotonic())
            self._log.add(name, str(status or "connection ended"), excused=excused)
            if not excused:
                took = time.monotonic() - began
                self._log.add_unexcused(f"{name} refused after {took:.2f} s: {status} {body[:300]!r}")
            return status
        self._log.add(name, str(status))
        if answered_id != f"n{number}":
            self._log.add_wrong(f"request n{number} to {name} got the answer of {answered_id}")
        if status != 200:
            self._log.add_wrong(f"{name}: {status} {body[:300]!r}")
        elif (problem := model.check(name, number, json.loads(body))) is not None:
            self._log.add_wrong(problem)
        return status

    def hang_up(self, name: str, model: Model) -> None:
        """Ask and go away before the answer."""
        body = encode(model, next(self._numbers))
        head = f"POST /models/{name}/invoke HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            with socket.create_connection(("127.0.0.1", self._server.port), timeout=20) as sock:
                sock.sendall(head.encode() + body)
        except OSError:
            pass
        self._log.hung_up += 1

    def close(self) -> None:
        """Hang up."""
        self._link.close()

    def _exchange(self, path: str, body: bytes, request_id: str) -> tuple[int, bytes, str]:
        headers = {"Content-Type": "application/json", "X-Amzn-SageMaker-Inference-Id": request_id}
        try:
            self._link.request("POST", path, body, headers)
            answer = self._link.getresponse()
            return answer.status, answer.read(), answer.getheader("X-Amzn-SageMaker-Inference-Id", "")
        except (OSError, http.client.HTTPException) as error:
            self._link.close()
            return 0, repr(error).encode(), ""


class Crew:
    """Threads that ask the residents in turn, ``per_s`` requests a second together."""

    def __init__(
        self, server: Server, residents: dict[str, Model], excuses: Excuses, log: Log, per_s: float, hands: int = 4
    ) -> None:
        self._residents = residents
        self._stopping = threading.Event()
        self._numbers = itertools.count()
        self._pause_s = hands / per_s
        self._callers = [Caller(server, excuses, log, self._numbers) for _ in range(hands)]
        self._threads = [
            threading.Thread(target=self._run, args=(caller, seed), daemon=True)
            for seed, caller in enumerate(self._callers)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Return when all have their last answer."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        for caller in self._callers:
            caller.close()

    def _run(self, caller: Caller, seed: int) -> None:
        dice = random.Random(seed)
        names = [name for name in self._residents for _ in range(SHARES.get(name.partition("-")[0], 1))]
        due = time.monotonic()
        while not self._stopping.is_set():
            name = dice.choice(names)
            if dice.randrange(HANG_UP_EVERY) == 0:
                caller.hang_up(name, self._residents[name])
            else:
                caller.ask(name, self._residents[name])
            due = max(due + self._pause_s * dice.uniform(0.5, 1.5), time.monotonic() - 5 * self._pause_s)
            self._stopping.wait(max(0.0, due - time.monotonic()))
