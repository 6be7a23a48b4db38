"""What is done to the server while it is asked: models that come and go, processes killed, code that hangs.

The parts that everybody needs (engine, guests, front) are killed in the first third only, so that afterwards creep in
them can be seen; what runs in processes of its own is killed and hung to the end.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

import httpx

from tests.chaos.traffic import Model
from tests.server import Server, living
from tests.soak.crew import Caller, Excuses, Log

#: All models of a fault must answer again within this.
BACK_S = 60.0
GUESTS = ("weighs-a", "weighs-b", "tagged", "hangs", "comes-weighs", "comes-tagged", "comes-broken")


class Faults:
    """Breaks something every ``every_s`` seconds, sees it mended, and goes on; ``done`` counts what was done."""

    def __init__(
        self, server: Server, residents: dict[str, Model], excuses: Excuses, log: Log, every_s: float, third_s: float
    ) -> None:
        self._server = server
        self._residents = residents
        self._excuses = excuses
        self._log = log
        self._every_s = every_s
        self._caller = Caller(server, excuses, log, itertools.count(1_000_000_000))
        self._gentle_from_s = time.monotonic() + third_s
        self._stopping = threading.Event()
        self.done: Counter[str] = Counter()
        #: (seconds of CLOCK_MONOTONIC, what) of each.
        self.moments: list[tuple[float, str]] = []
        self.healed = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when the fault under way is over."""
        self._stopping.set()
        self._thread.join()
        self._caller.close()

    def _run(self) -> None:
        http = httpx.Client(base_url=self._server.http.base_url, timeout=90)
        harsh = itertools.cycle((self.guests_killed, self.front_killed, self.own_killed, self.hang, self.hang_alone))
        gentle = itertools.cycle((self.own_killed, self.hang_alone, self.broken_load))
        kills = 0
        while not self._stopping.wait(self._every_s):
            if time.monotonic() > self._gentle_from_s - self._every_s:
                fault: Callable[[httpx.Client], None] = next(gentle)
            elif self.done.total() % 8 == 2 and kills < 3:  # a fourth within five minutes and /ping is 503
                fault, kills = self.engine_killed, kills + 1
            else:
                fault = next(harsh)
            self.moments.append((time.monotonic(), fault.__name__))
            try:
                fault(http)
            except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on and ends in failure
                self._log.add_wrong(f"fault {fault.__name__}: {error!r}"[:400])
            self.done[fault.__name__] += 1
        http.close()

    # ------------------------------------------------------------------ faults

    def engine_killed(self, http: httpx.Client) -> None:
        with self._excuses.cover():
            os.kill(self._server.pid_of("engine"), signal.SIGKILL)
            self._until_back(http, list(self._residents))

    def guests_killed(self, http: httpx.Client) -> None:
        with self._excuses.cover(*GUESTS):
            os.kill(self._server.pid_of("guests"), signal.SIGKILL)
            self._until_back(http, [name for name in GUESTS if name in self._residents])

    def front_killed(self, http: httpx.Client) -> None:
        with self._excuses.cover():
            master = self._server.pid_of("front")
            worker = next(process.pid for process in self._server.family() if process.ppid() == master)
            os.kill(worker, signal.SIGKILL)
            self._excuses.front_died_s = time.monotonic()
            self._until_back(http, list(self._residents))

    def own_killed(self, http: httpx.Client) -> None:
        own = living(self._server.family(), "own-")
        with self._excuses.cover("packaged", "hangs-alone", "hangs"):
            if own:
                os.kill(random.choice(own).pid, signal.SIGKILL)
            self._until_back(http, ["packaged", "hangs-alone", "hangs"])

    def hang(self, http: httpx.Client) -> None:
        """The interpreter lock of the guests' process is held for ever; in the end the model has its own process."""
        with self._excuses.cover(*GUESTS):
            self._hang(http, "hangs")
            self._until_back(http, [name for name in GUESTS if name in self._residents])

    def hang_alone(self, http: httpx.Client) -> None:
        with self._excuses.cover("hangs-alone"):
            self._hang(http, "hangs-alone")
            self._until_back(http, ["hangs-alone"])

    def broken_load(self, http: httpx.Client) -> None:
        """An archive that cannot be loaded: refused with its reason, and the name unknown."""
        body = {"model_name": "comes-broken", "url": str(self._server.folder("comes-broken"))}
        answer = http.post("/models", json=body)
        if (answer.status_code, answer.json()["reason"]) != (500, "model.load_failed"):
            self._log.add_wrong(f"a load that must fail: {answer.status_code} {answer.text[:300]}")
        if http.get("/models/comes-broken").status_code != 404:
            self._log.add_wrong("a model that failed to load is known")

    def _hang(self, http: httpx.Client, name: str) -> None:
        try:
            answer = http.post(f"/models/{name}/invoke", json={"number": 0, "hang": True})
        except httpx.TransportError as error:
            self._log.add_wrong(f"{name} hangs and its caller is told nothing: {error!r}")
            return
        if answer.status_code not in (503, 504):
            self._log.add_wrong(f"{name} hangs and its caller is told {answer.status_code} {answer.text[:200]}")

    # ----------------------------------------------------------------- mending

    def _until_back(self, http: httpx.Client, names: list[str]) -> None:
        """Ask ``names`` until each has answered; what is quarantined is unloaded and loaded, as its owner would."""
        deadline = time.monotonic() + BACK_S
        waiting = list(names)
        while waiting:
            if time.monotonic() > deadline:
                self._log.add_wrong(f"{waiting} did not answer within {BACK_S:.0f} s")
                return
            try:
                waiting = [name for name in waiting if not self._answers(http, name)]
            except (httpx.TransportError, json.JSONDecodeError):
                pass
            time.sleep(0.05)

    def _answers(self, http: httpx.Client, name: str) -> bool:
        if self._caller.ask(name, self._residents[name]) == 200:
            return True
        described = http.get(f"/models/{name}")
        if described.status_code == 200 and described.json()["state"] == "quarantined":
            with self._excuses.cover(name, reload=True):
                self._reload(http, name)
            self.healed += 1
        return False

    def _reload(self, http: httpx.Client, name: str) -> None:
        gone = http.delete(f"/models/{name}")
        back = http.post("/models", json={"model_name": name, "url": str(self._server.folder(name))})
        if (gone.status_code, back.status_code) != (200, 200):
            self._log.add_wrong(f"{name} is quarantined and cannot be loaded anew: {gone.text[:200]} {back.text[:200]}")


class Visits:
    """Loads a visitor, asks it, unloads it, sees that it is gone; one after the other, until ``stop``."""

    def __init__(self, server: Server, visitors: dict[str, Model], excuses: Excuses, log: Log, every_s: float) -> None:
        self._server = server
        self._visitors = {name: model for name, model in visitors.items() if name != "comes-broken"}
        self._excuses = excuses
        self._log = log
        self._every_s = every_s
        self._caller = Caller(server, excuses, log, itertools.count(2_000_000_000))
        self._stopping = threading.Event()
        self.made = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when the visit under way is over."""
        self._stopping.set()
        self._thread.join()
        self._caller.close()

    def _run(self) -> None:
        http = httpx.Client(base_url=self._server.http.base_url, timeout=90)
        for name in itertools.cycle(self._visitors):
            if self._stopping.wait(self._every_s):
                break
            began = time.monotonic()
            try:
                problem = self._visit(http, name)
            except httpx.TransportError as error:
                problem = repr(error)
            if problem and not self._excuses.hold(name, began, time.monotonic()):
                self._log.add_wrong(f"visit of {name}: {problem}"[:400])
            if problem:
                self._clear(http, name)
            self.made += 1
        http.close()

    def _visit(self, http: httpx.Client, name: str) -> str:
        """Return what went wrong, nothing if nothing did."""
        loaded = http.post("/models", json={"model_name": name, "url": str(self._server.folder(name))})
        if loaded.status_code != 200:
            return f"load {loaded.status_code} {loaded.text[:200]}"
        for _ in range(4):
            status = self._caller.ask(name, self._visitors[name])
            if status != 200:
                return f"invoke {status}"
        gone = http.delete(f"/models/{name}")
        if gone.status_code != 200:
            return f"unload {gone.status_code} {gone.text[:200]}"
        after = http.post(f"/models/{name}/invoke", json=self._visitors[name].question(1))
        return "" if after.status_code == 404 else f"answers {after.status_code} after it was unloaded"

    def _clear(self, http: httpx.Client, name: str) -> None:
        """Make the name unknown again, whatever state a fault has left it in."""
        deadline = time.monotonic() + BACK_S
        while time.monotonic() < deadline:
            try:
                if http.delete(f"/models/{name}").status_code in (200, 404):
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        self._log.add_wrong(f"{name} cannot be unloaded")
