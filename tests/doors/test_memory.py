"""Refusals for memory through both doors: 507, the name unknown afterwards, no process left of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.doors.differences import DIFFERENCES
from tests.makers import tiny_bert
from tests.memory_errors import CODES, TABLE
from tests.server import Server, running, write_handler

#: Raises what its request names by number, and while it loads what its options name.
RAISES = f"""
import errno
import numpy
from container.handler import Handler

CODES = {list(CODES.values())!r}

def fail(number):
    exec(CODES[number], {{"errno": errno}})

class Raises(Handler):
    batched = False

    def load(self, model_dir, context):
        if "at_load" in context.options:
            fail(context.options["at_load"])

    def predict(self, batch):
        fail(int(numpy.ravel(batch)[0]))
"""
GREEDY = """
from container.handler import Handler

class Greedy(Handler):
    def predict(self, batch):
        raise MemoryError("no more")
"""


@pytest.fixture(scope="module")
def server(door: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Room for two of the tiny models, and nobody sinks: the platform has to choose."""
    base = tmp_path_factory.mktemp(door)
    size = (tiny_bert(base / "scale") / "model.safetensors").stat().st_size
    limit = str(int(size * 2.5))
    with running(base, BERTH_DOOR=door, BERTH_MEMORY_LIMIT=limit, BERTH_EVICTION="platform") as started:
        yield started


def asked(server: Server, number: int) -> dict[str, Any]:
    """The answers of every way to ask the model "raises" that the door has."""
    ways = {"invoke": server.invoke("raises", number)}
    if server.environ["BERTH_DOOR"] == "http":
        ways["invocations"] = server.http.post("/invocations", json=number)
        question = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [number]}]}
        ways["v2"] = server.http.post("/v2/models/raises/infer", json=question)
        headers = {"Content-Type": "application/vnd.kserve.v2+json"}
        ways["v2 by content type"] = server.http.post("/models/raises/invoke", json=question, headers=headers)
    return ways


def loaded(server: Server, name: str) -> dict[str, Any]:
    """The answers of every way to load ``name`` that the door has; none of them succeeds."""
    ways = {"POST /models": server.load(name)}
    if server.environ["BERTH_DOOR"] == "http":
        ways["v2"] = server.http.post(f"/v2/repository/models/{name}/load")
    return ways


@pytest.fixture(scope="module")
def at_large(door: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with room for all, with the model "raises" behind every way to ask that there is."""
    base = tmp_path_factory.mktemp(door)
    write_handler(base / "model", RAISES)
    single = {"SAGEMAKER_MULTI_MODEL": ""} if door == "http" else {}  # Java serves one or many
    with running(base, BERTH_DOOR=door, **single) as started:
        write_handler(started.folder("raises"), RAISES)
        started.load("raises").raise_for_status()
        yield started


@pytest.mark.parametrize(("name", "real"), [pytest.param(name, real, id=name) for name, _, real in TABLE])
def test_at_invoke_only_a_real_failure_to_allocate_is_507_at_every_door(
    at_large: Server, name: str, real: bool
) -> None:
    wanted = (507, "memory.exhausted") if real else (500, "model.failed")
    answers = asked(at_large, list(CODES).index(name))
    found = {way: (answer.status_code, answer.json()["reason"]) for way, answer in answers.items()}
    assert found == dict.fromkeys(answers, wanted)


#: Java takes seconds to be rid of a model that was refused; which error is one is decided before it.
AT_LOAD = {"http": list(CODES), "mms": ["torch", "no space", "value error", "own class"]}


def test_at_load_only_a_real_failure_to_allocate_is_507_at_every_door(at_large: Server, door: str) -> None:
    before = at_large.names()
    for name, _, real in TABLE:
        if name not in AT_LOAD[door]:
            continue
        number = list(CODES).index(name)
        model = f"fails{number}"
        write_handler(at_large.folder(model), RAISES, options={"at_load": number})
        answers = loaded(at_large, model)
        found = {way: answer.status_code for way, answer in answers.items()}
        assert found == dict.fromkeys(answers, 507 if real else 500), name
        assert at_large.names() == before


def processes(server: Server) -> set[int]:
    return {process.pid for process in server.family()}


def test_a_load_without_room_is_507_and_leaves_nothing_until_there_is_room(server: Server) -> None:
    for number, name in enumerate(("first", "second", "third")):
        tiny_bert(server.folder(name), number)
    for name in ("first", "second"):
        server.load(name).raise_for_status()
    before = processes(server)
    for _ in range(3):
        answer = server.load("third")
        assert (answer.status_code, answer.json()["code"]) == (507, 507), answer.text
        time.sleep(0.2)  # the platform unloads another meanwhile; Java's threads are done with the refused one
        assert server.names() == ["first", "second"]
        assert server.http.get("/models/third").status_code == 404
        assert server.invoke("third", {"inputs": "a"}).status_code == 404
        assert server.unload("third").status_code == 404
    until = time.monotonic() + 60  # a refused worker lingers for two seconds
    while processes(server) - before and time.monotonic() < until:
        time.sleep(0.1)
    assert processes(server) - before == set()  # fewer is right: Java's collector of metrics comes and goes
    assert server.invoke("first", {"inputs": "a"}).status_code == 200
    server.unload("second").raise_for_status()
    assert server.load("third").status_code == 200, server.log()
    assert len(server.invoke("third", {"inputs": "a"}).json()) == 32
    assert server.names() == ["first", "third"]
    for name in ("first", "third"):
        server.unload(name).raise_for_status()


def test_what_can_never_fit_is_told_so_where_the_door_has_a_word_for_it(server: Server, door: str) -> None:
    tiny_bert(server.folder("huge"), hidden=128, layers=4)
    answer = server.load("huge")
    assert answer.status_code == getattr(DIFFERENCES["larger than the limit"], door), answer.text
    assert "memory.larger_than_limit" in server.log()
    time.sleep(0.05)
    assert server.names() == []


def test_code_that_runs_out_of_memory_while_answering_is_507_and_the_model_stays(server: Server) -> None:
    write_handler(server.folder("greedy"), GREEDY)
    server.load("greedy").raise_for_status()
    answer = server.invoke("greedy", 1)
    assert (answer.status_code, answer.json()["reason"]) == (507, "memory.exhausted"), answer.text
    assert server.names() == ["greedy"]
    server.unload("greedy").raise_for_status()


def test_the_v2_protocol_says_507_at_load_and_at_invoke_too(server: Server, door: str) -> None:
    if door == "mms":
        assert server.http.get("/v2/health/live").status_code == 404, "Java knows no such paths"
        return
    for number, name in enumerate(("first", "second", "third")):
        tiny_bert(server.folder(name), number)
    for name in ("first", "second"):
        server.load(name).raise_for_status()
    refused = server.http.post("/v2/repository/models/third/load")
    assert (refused.status_code, refused.json()["reason"]) == (507, "memory.no_room"), refused.text
    assert server.names() == ["first", "second"]
    assert server.http.get("/v2/models/third").status_code == 404
    server.unload("second").raise_for_status()
    assert server.http.post("/v2/repository/models/third/load").status_code == 200
    server.unload("third").raise_for_status()
    write_handler(server.folder("greedy"), GREEDY)
    server.load("greedy").raise_for_status()
    question = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
    answer = server.http.post("/v2/models/greedy/infer", json=question)
    assert (answer.status_code, answer.json()["reason"]) == (507, "memory.exhausted"), answer.text
    for name in ("first", "greedy"):
        server.unload(name).raise_for_status()
    assert server.names() == []
    unknown = server.http.post("/v2/repository/models/nowhere/load")
    assert unknown.status_code == 404
    assert str(server.base) not in unknown.text, "no folder of the server is anybody's business"
