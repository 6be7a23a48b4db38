"""Load, unload, invoke, list, describe the same few names from several clients: each answer must be possible.

Hypothesis chooses bursts of calls that run at the same time against the real server. What is possible follows from the
life-cycle table (``history.py``); docs/races.md says what was decided where SageMaker's contract is silent.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from container.memory.sizes import checkpoint_bytes
from tests.chaos.traffic import TAGGED
from tests.makers import tiny_bert
from tests.server import Server, running, write_handler
from tests.system.history import Call, ends

#: "ours" and "twin" have the same weights and share them; "third" has others, and there is room for one set and a half.
OURS = {"ours": 1, "twin": 1, "third": 2}
NAMES = (*OURS, "theirs")
VERBS = ("load", "unload", "invoke", "describe", "list")
bursts = st.lists(st.tuples(st.sampled_from(VERBS), st.sampled_from(NAMES)), min_size=2, max_size=12)


class Clients:
    """Twelve clients of one server, each with a connection of its own; what each call was told, by name."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.made = 0
        self.reference: dict[str, Any] = {}
        self._numbers = itertools.count()
        self._own = threading.local()
        self._links: list[httpx.Client] = []
        self._pool = concurrent.futures.ThreadPoolExecutor(12)

    def close(self) -> None:
        self._pool.shutdown()
        for link in self._links:
            link.close()

    def all_at_once(self, burst: list[tuple[str, str]]) -> dict[str, list[Call]]:
        """Make the calls of ``burst`` at the same time; return what was told of each name."""
        gate = threading.Barrier(len(burst))

        def one(verb: str, name: str) -> list[tuple[str, Call]]:
            gate.wait()
            return self.call(verb, name)

        told: dict[str, list[Call]] = {name: [] for name in NAMES}
        made = [self._pool.submit(one, *each) for each in burst]
        concurrent.futures.wait(made)  # all of them, also when one is wrong
        for calls in made:
            for name, call in calls.result():
                told[name].append(call)
        self.made += len(burst)
        return told

    def call(self, verb: str, name: str) -> list[tuple[str, Call]]:
        began = time.monotonic()
        answer, number = self._send(verb, name)
        ended = time.monotonic()
        body, status = answer.json(), answer.status_code
        if verb == "list":
            assert status == 200, answer.text
            listed = {each["modelName"] for each in body["models"]}
            assert listed <= set(NAMES)
            words = {name: "listed" if name in listed else "not listed" for name in NAMES}
            return [(name, Call("list", word, began, ended)) for name, word in words.items()]
        if verb == "invoke" and status == 200:
            self._check(name, body, number)
        told = body["state"] if verb == "describe" and status == 200 else str(status)
        return [(name, Call(verb, told, began, ended))]

    def _send(self, verb: str, name: str) -> tuple[httpx.Response, int]:
        http = getattr(self._own, "http", None)
        if http is None:
            http = self._own.http = httpx.Client(base_url=self.server.http.base_url, timeout=60)
            self._links.append(http)
        number = next(self._numbers)
        question = {"inputs": "abc"[number % 3]} if name in OURS else {"number": number}
        match verb:
            case "load":
                body = {"model_name": name, "url": str(self.server.folder(name))}
                return http.post("/models", json=body), number
            case "unload":
                return http.delete(f"/models/{name}"), number
            case "list":
                return http.get("/models"), number
            case "describe":
                return http.get(f"/models/{name}"), number
            case _:
                return http.post(f"/models/{name}/invoke", json=question), number

    def _check(self, name: str, body: Any, number: int) -> None:
        """Whatever happens beside it, an answer is its own model's and its own request's."""
        if name in OURS:
            assert body == pytest.approx(self.reference[f"{name} {number % 3}"], abs=1e-5)
        else:
            assert body == {"model": name, "number": number}


class Races(RuleBasedStateMachine):
    """Bursts of calls; between them everything is settled."""

    clients: Clients

    @initialize()
    def nothing_is_loaded(self) -> None:
        for name in self.clients.server.names():
            self.clients.server.unload(name).raise_for_status()
        self.state = dict.fromkeys(NAMES, "absent")

    @rule(burst=bursts)
    def all_at_once(self, burst: list[tuple[str, str]]) -> None:
        for name, calls in self.clients.all_at_once(burst).items():
            possible = ends(self.state[name], calls)
            assert len(possible) == 1, (name, self.state[name], possible, calls)
            (self.state[name],) = possible

    @rule(name=st.sampled_from(NAMES))
    def one_name_by_everybody(self, name: str) -> None:
        verbs = ("load", "invoke", "load", "describe", "unload", "invoke", "load", "unload", "list", "describe")
        self.all_at_once([(verb, name) for verb in verbs])

    @rule()
    def two_that_share_come_and_go(self) -> None:
        verbs = ("load", "describe", "invoke", "unload", "describe")
        self.all_at_once([(verb, name) for verb in verbs for name in ("ours", "twin")])

    @invariant()
    def what_is_listed_is_what_was_loaded(self) -> None:
        there = sorted(name for name, state in self.state.items() if state == "ready")
        assert self.clients.server.names() == there
        for name in NAMES:
            ((_, call),) = self.clients.call("invoke", name)
            assert call.told == ("200" if name in there else "404"), call


@pytest.fixture(scope="module")
def clients() -> Iterator[Clients]:
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folders = {name: base / "models" / name / "model" for name in NAMES}
        for name, seed in OURS.items():
            tiny_bert(folders[name], seed, hidden=128, layers=4)
        write_handler(folders["theirs"], TAGGED)
        room = int(1.5 * checkpoint_bytes(folders["third"]))
        server = stack.enter_context(running(base, BERTH_MEMORY_LIMIT=str(room)))
        found = Clients(server)
        stack.callback(found.close)
        for name in OURS:
            server.load(name).raise_for_status()
            for number, letter in enumerate("abc"):
                found.reference[f"{name} {number}"] = server.invoke(name, {"inputs": letter}).raise_for_status().json()
        yield found


def test_whatever_clients_do_at_once_every_answer_is_possible(clients: Clients) -> None:
    Races.clients = clients
    run_state_machine_as_test(
        Races,
        settings=settings(
            max_examples=12,
            stateful_step_count=8,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # what depends on the moment does not shrink
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"{clients.made} calls in bursts")
    assert clients.made > 100
    tracebacks = [line for line in clients.server.log().splitlines() if "Traceback" in line]
    assert not tracebacks, json.loads(tracebacks[0])["traceback"]


def at(verb: str, told: str, began: float, ended: float) -> Call:
    return Call(verb, told, began, ended)


@pytest.mark.parametrize(
    ("before", "calls", "after"),
    [
        ("absent", [at("load", "200", 0, 2), at("invoke", "200", 1, 2)], {"ready"}),
        ("absent", [at("load", "200", 0, 1), at("load", "200", 0, 1)], set()),
        ("absent", [at("load", "200", 0, 1), at("load", "409", 0, 1)], {"ready"}),
        ("absent", [at("load", "409", 0, 1)], set()),
        ("ready", [at("unload", "200", 0, 1), at("unload", "404", 0, 1)], {"absent"}),
        ("ready", [at("unload", "200", 0, 1), at("invoke", "200", 2, 3)], set()),
        ("ready", [at("unload", "200", 0, 2), at("invoke", "404", 0, 1), at("invoke", "200", 1.5, 2)], set()),
        ("ready", [at("unload", "200", 0, 2), at("load", "200", 0, 3), at("describe", "draining", 0, 3)], {"ready"}),
        ("ready", [at("invoke", "500", 0, 1)], None),
        ("absent", [at("load", "200", 0, 4), at("list", "listed", 0, 1), at("list", "not listed", 2, 3)], set()),
    ],
)
def test_a_history_is_possible_only_if_some_order_of_its_calls_is(
    before: str, calls: list[Call], after: set[str] | None
) -> None:
    if after is None:
        with pytest.raises(KeyError):
            ends(before, calls)
    else:
        assert ends(before, calls) == after
