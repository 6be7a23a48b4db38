"""Load, unload, invoke and list the same few names from several clients: each answer must be possible.

Hypothesis chooses bursts of calls that run at the same time against the real server. What is possible follows from the
life-cycle table (engine/lifecycle) by the states a name can have been in between a call's start and its end;
docs/races.md says what was decided where SageMaker's contract is silent.
"""

from __future__ import annotations

import concurrent.futures
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.chaos.traffic import TAGGED
from tests.makers import tiny_bert
from tests.server import Server, running, write_handler

NAMES = ("ours", "theirs", "third")
VERBS = ("load", "unload", "invoke", "list", "describe")
calls = st.lists(st.tuples(st.sampled_from(VERBS), st.sampled_from(NAMES)), min_size=1, max_size=8)


class Call(NamedTuple):
    """One call that was made, and what it was told. Times are of CLOCK_MONOTONIC."""

    verb: str
    name: str
    began: float
    ended: float
    status: int
    body: object


class Life:
    """Which states the name may be in, from the calls of one burst that changed it."""

    def __init__(self, before: bool, burst: list[Call]) -> None:
        self.before = before
        self.loads = [call for call in burst if call.verb == "load" and call.status == 200]
        self.unloads = [call for call in burst if call.verb == "unload" and call.status == 200]

    @property
    def after(self) -> bool:
        """Whether the name is registered now: loads and unloads that succeeded alternate."""
        return bool(self.before + len(self.loads) - len(self.unloads))

    def may_be_there(self, call: Call) -> bool:
        return self.before or any(load.began < call.ended for load in self.loads)

    def may_be_absent(self, call: Call) -> bool:
        return not self.before or any(unload.began < call.ended for unload in self.unloads)

    def possible(self, call: Call) -> bool:
        there, absent = self.may_be_there(call), self.may_be_absent(call)
        match call.verb, call.status:
            case "load", 200:
                return absent
            case "load", 409:
                return there
            case "unload" | "invoke" | "describe", 200:
                return there
            case "unload" | "invoke" | "describe", 404:
                return absent
            case "list", 200:
                return True
        return False


class Races(RuleBasedStateMachine):
    """Bursts of calls; between them everything is settled."""

    server: Server
    pool: concurrent.futures.ThreadPoolExecutor
    tried = 0

    @initialize()
    def nothing_is_loaded(self) -> None:
        for name in self.server.names():
            self.server.unload(name).raise_for_status()
        self.there = dict.fromkeys(NAMES, False)
        self.number = 0

    @rule(burst=calls)
    def all_at_once(self, burst: list[tuple[str, str]]) -> None:
        made = list(self.pool.map(lambda each: self.call(*each), burst))
        type(self).tried += len(made)
        for name in NAMES:
            mine = [call for call in made if call.name == name]
            life = Life(self.there[name], mine)
            assert 0 <= self.there[name] + len(life.loads) - len(life.unloads) <= 1, mine
            for call in mine:
                assert life.possible(call), (call, mine)
            self.there[name] = life.after

    @rule(name=st.sampled_from(NAMES))
    def one_name_by_everybody(self, name: str) -> None:
        self.all_at_once([("load", name), ("invoke", name), ("load", name), ("unload", name), ("invoke", name)])

    @invariant()
    def what_is_listed_is_what_was_loaded(self) -> None:
        there = sorted(name for name, there in self.there.items() if there)
        assert self.server.names() == there
        for name in NAMES:
            call = self.call("invoke", name)
            assert call.status == (200 if name in there else 404), call

    def call(self, verb: str, name: str) -> Call:
        self.number += 1
        number = self.number
        http = self.server.http
        began = time.monotonic()
        answer: httpx.Response
        match verb:
            case "load":
                answer = self.server.load(name)
            case "unload":
                answer = self.server.unload(name)
            case "list":
                answer = http.get("/models")
            case "describe":
                answer = http.get(f"/models/{name}")
            case _:
                question = {"inputs": "a"} if name == "ours" else {"number": number}
                answer = self.server.invoke(name, question)
        call = Call(verb, name, began, time.monotonic(), answer.status_code, answer.json())
        if verb == "invoke" and call.status == 200 and name != "ours":
            assert call.body == {"model": name, "number": number}, "another request's answer"
        if verb == "describe" and call.status == 200:
            assert answer.json()["state"] in ("loading", "ready", "draining")
        return call


@pytest.fixture(scope="module")
def racing() -> Iterator[Server]:
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(running(base))
        tiny_bert(server.folder("ours"))
        for name in NAMES[1:]:
            write_handler(server.folder(name), TAGGED)
        yield server


def test_whatever_clients_do_at_once_every_answer_is_possible(racing: Server) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        Races.server, Races.pool = racing, pool
        run_state_machine_as_test(
            Races,
            settings=settings(
                max_examples=15,
                stateful_step_count=8,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    assert Races.tried > 100
    assert "Traceback" not in racing.log()
