"""What handlers/README.md guarantees: each line has a test of its name here, on the real server where it can."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from container.handler import Handler, Parts, Ready
from container.model import moving, pipeline
from container.model.dispatch import Dispatcher, Ticket
from container.model.lanes import Lanes
from container.payload import Payload
from tests.makers import tiny_bert
from tests.server import Server, running, write_handler, write_script

GUIDE = (Path(__file__).parents[2] / "handlers" / "README.md").read_text()
HEAD = """
import logging, os, sys, threading, time
import torch
from container.errors import BadInput
from container.handler import Handler
from container.payload import Payload

class Mine(Handler):
"""

PACKAGE = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "shouting"
version = "1.0"
[project.entry-points."berth.handlers"]
shouting = "shouting.handler:Shouting"
[tool.setuptools]
packages = ["shouting"]
""",
    "shouting/__init__.py": "",
    "shouting/handler.py": """
from container.handler import Handler
from container.payload import Payload

class Shouting(Handler):
    task = "shouting"
    example = Payload(b'"hello"')

    def load(self, model_dir, context):
        self.mark = (model_dir / "mark.txt").read_text()

    def predict(self, batch):
        return [text.upper() + self.mark for text in batch]
""",
}


def test_each_line_of_the_guide_has_its_test_and_each_test_its_line() -> None:
    lines = re.findall(r"^- \*\*(.+?)\*\*", GUIDE.partition("## What berth guarantees")[2], re.MULTILINE)
    named = ["_".join(re.findall(r"[a-z]+", line.lower().replace("'", ""))) for line in lines]
    _, *here = [name.removeprefix("test_") for name in globals() if name.startswith("test_")]
    assert here == named


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all of them; a package with a task is really installed beside it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name, text in PACKAGE.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, capture_output=True)
    with running(tmp_path_factory.mktemp("base"), PYTHONPATH=str(target)) as started:
        yield started


def load(server: Server, name: str, body: str, **berth: Any) -> None:
    write_handler(server.folder(name), HEAD + body, **berth)
    assert server.load(name).status_code == 200, server.log()


def together(server: Server, name: str, *values: Any) -> list[httpx.Response]:
    with ThreadPoolExecutor(len(values)) as callers:
        return list(callers.map(lambda value: server.invoke(name, value), values))


BATCHES = """
    def load(self, model_dir, context):
        self.loads = getattr(self, "loads", 0) + 1
        self.device = str(torch.nn.Linear(1, 1).weight.device)
        self.asked = self.inside = self.most = self.largest = 0

    def predict(self, batch):
        self.inside += 1
        self.most, self.largest = max(self.most, self.inside), max(self.largest, len(batch))
        time.sleep(0.005)
        self.inside -= 1
        return [{"loads": self.loads, "device": self.device, "most": self.most, "largest": self.largest} for _ in batch]
"""


def test_load_comes_first_once_on_the_cpu(server: Server) -> None:
    load(server, "first", BATCHES)
    answers = [answer.json() for answer in together(server, "first", *range(8))]
    assert {(each["loads"], each["device"]) for each in answers} == {(1, "cpu")}


def test_what_load_raises_is_the_answer_to_the_load(server: Server) -> None:
    write_handler(
        server.folder("raises"), HEAD + "    def load(self, model_dir, context):\n        raise OSError('no sails')\n"
    )
    refused = server.load("raises")
    assert refused.status_code == 500
    assert "OSError: no sails" in refused.json()["message"]
    assert server.invoke("raises", 1).status_code == 404
    assert "raises" not in server.names()


def test_predict_never_runs_twice_at_a_time_on_one_object(server: Server) -> None:
    load(server, "alone", BATCHES, batch={"max_size": 2})
    assert {answer.json()["most"] for answer in together(server, "alone", *range(16))} == {1}


def test_predict_sees_at_most_as_many_inputs_as_berth_json_says(server: Server) -> None:
    load(server, "threes", BATCHES, batch={"max_size": 3})
    load(server, "many", BATCHES)
    together(server, "threes", *range(24))
    assert server.invoke("threes", 0).json()["largest"] in (2, 3)
    together(server, "many", *range(24))
    assert server.invoke("many", 0).json()["largest"] > 3  # so the limit was the manifest's


def test_batched_false_is_one_input_at_a_time(server: Server) -> None:
    load(server, "single", f"    batched = False\n{BATCHES}")
    together(server, "single", *range(16))
    assert server.invoke("single", 0).json()["largest"] == 1


TWICE = """
    def size(self, value):
        return value
    def predict(self, batch):
        return [value * 2 for value in batch]
"""


def test_each_caller_gets_the_answer_to_its_own_input(server: Server) -> None:
    load(server, "echo", TWICE)
    assert [answer.json() for answer in together(server, "echo", *range(40))] == [2 * value for value in range(40)]


PICKY = """
    def predict(self, batch):
        if "bad" in batch:
            raise ValueError("I do not take that")
        return [BadInput("expected something kind") if value == "unkind" else value for value in batch]
"""


def test_one_bad_input_does_not_fail_its_neighbours(server: Server) -> None:
    load(server, "picky", PICKY)
    answers = together(server, "picky", *["bad", "good"] * 8)
    assert [answer.status_code for answer in answers] == [500, 200] * 8


def test_an_output_may_be_an_error_for_one_caller(server: Server) -> None:
    load(server, "kind", PICKY)
    unkind, good = together(server, "kind", "unkind", "good")
    assert (unkind.status_code, unkind.json()["message"]) == (400, "expected something kind")
    assert good.json() == "good"


def test_a_wrong_number_of_outputs_goes_to_nobody(server: Server) -> None:
    load(server, "short", "    def predict(self, batch):\n        return ['mine', *batch]\n")
    for answer in together(server, "short", *range(8)):
        assert (answer.status_code, answer.json()["reason"]) == (500, "model.bad_answer")
        assert re.search(r"predict returned \d outputs for \d inputs", answer.json()["message"])


def test_modules_go_to_the_device_and_inputs_follow_them() -> None:
    class Net(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return self.weight.device.type, x.device.type

    class Holds(Handler):
        def __init__(self) -> None:
            self.parts = {"net": Net(2, 2)}

        def predict(self, batch: list[Any]) -> list[Any]:
            return [self.parts["net"](torch.zeros(2)) for _ in batch]

    handler = Holds()
    assert handler.predict([1]) == [("cpu", "cpu")]
    moving.adopt_all([handler], "meta")  # the only other device everywhere; tests/model/test_ferry.py on a GPU
    assert handler.predict([1]) == [("meta", "meta")]


def test_no_gradients_are_kept(server: Server) -> None:
    code = """
    def load(self, model_dir, context):
        self.net = torch.nn.Linear(1, 1)
    def predict(self, batch):
        return [self.net(torch.ones(1, 1)).requires_grad for _ in batch]
"""
    load(server, "frozen", code)
    assert server.invoke("frozen", 1).json() is False


class _Waits(Handler):
    """Goes on until another model has been asked, or for a long time."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def steps(self, batch: list[Any]) -> Iterator[Any]:
        for _ in range(5000):
            if self.asked.is_set():
                break
            time.sleep(0.001)
            yield None
        yield [self.asked.is_set() for _ in batch]


class _Tells(Handler):
    """Tells an early piece to the first, an output to the second, and goes on when both have been heard of."""

    reentrant = True

    def __init__(self, early: Any) -> None:
        self.early = early
        self.heard = threading.Event()

    def steps(self, batch: list[Any]) -> Iterator[Any]:
        yield self.early
        for _ in range(5000):
            if self.heard.is_set():
                break
            time.sleep(0.001)
            yield None
        yield [self.heard.is_set() for _ in batch]


def run(scenario: Any) -> None:
    async def main() -> None:
        lanes = Lanes(1)
        await asyncio.wait_for(scenario(Dispatcher(lanes)), 60)
        lanes.close()

    asyncio.run(main())


def ask(dispatcher: Dispatcher, name: str, part: Any = None, then: Any = None) -> asyncio.Future[Any]:
    answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    answered.add_done_callback(lambda _: then() if then else None)
    dispatcher.submit(name, Ticket(Payload(b"1"), answered.set_result, time.monotonic(), part=part))
    return answered


def test_other_models_run_between_two_steps() -> None:
    class Short(Handler):
        def predict(self, batch: list[Any]) -> list[Any]:
            long.asked.set()
            return batch

    long = _Waits()

    async def scenario(dispatcher: Dispatcher) -> None:
        dispatcher.open("long", long)
        dispatcher.open("short", Short())
        waiting = ask(dispatcher, "long")
        await ask(dispatcher, "short")
        assert (await waiting).body == b"true"

    run(scenario)


def test_a_piece_of_an_answer_is_told_at_once() -> None:
    handler = _Tells(Parts({0: Payload(b"piece", "text/plain")}))

    async def scenario(dispatcher: Dispatcher) -> None:
        dispatcher.open("m", handler)
        told: list[bytes] = []
        answer = ask(dispatcher, "m", lambda piece: (told.append(piece.body), handler.heard.set()))
        await answer
        assert told == [b"piece", b"true"]  # the end came after the piece had been heard of

    run(scenario)


def test_a_ready_output_does_not_wait_for_the_others() -> None:
    handler = _Tells(Ready({0: "early"}))
    found = []
    payloads = [Payload(b"1"), Payload(b"2")]
    for results in pipeline.answer(handler, payloads, 99, 9):
        if results:
            found.append([(place, answer.body) for place, answer in results])
            handler.heard.set()
    assert found == [[(0, b'"early"')], [(1, b"true")]]


TALKS = """
    def predict(self, batch):
        print("ahoy from print")
        logging.getLogger("mine").warning("ahoy from logging")
        return batch
"""


def test_print_and_logging_carry_model_and_request(server: Server) -> None:
    load(server, "talks", TALKS)
    assert server.invoke("talks", 1, x_amzn_sagemaker_inference_id="voyage-7").status_code == 200
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = [line for line in server.log_lines() if "ahoy from" in line["message"]]
        if len(lines) == 2:
            break
        time.sleep(0.02)
    assert {line["message"] for line in lines} == {"ahoy from print", "ahoy from logging"}
    assert {(line["model"], line["request"]) for line in lines} == {("talks", "voyage-7")}


ROAMS = """
    def predict(self, batch):
        found = [str(torch.get_default_dtype()), torch.get_num_threads(), os.getcwd(), len(sys.path)]
        found.append(os.environ.get("MINE"))
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(3)
        os.chdir("/")
        sys.path.insert(0, "/elsewhere")
        os.environ["MINE"] = "changed"
        return [found for _ in batch]
"""


def test_the_surroundings_are_the_same_at_each_call(server: Server) -> None:
    load(server, "roams", ROAMS)
    load(server, "neighbour", ROAMS)
    first, *others = [server.invoke(name, 1).json() for name in ("roams", "roams", "neighbour", "roams")]
    assert others == [first] * 3
    assert first[0] == "torch.float32" and first[4] is None


def test_an_archives_modules_are_its_own(server: Server) -> None:
    for name in ("cats", "dogs"):
        write_script(
            server.folder(name),
            "from utils import NAME\ndef model_fn(d):\n    return NAME\ndef predict_fn(data, net):\n    return net\n",
            utils=f"NAME = {name!r}\n",
        )
        assert server.load(name).status_code == 200
    assert [server.invoke(name, 1).json() for name in ("cats", "dogs", "cats")] == ["cats", "dogs", "cats"]


def test_a_package_beside_berth_may_add_a_task(server: Server) -> None:
    folder = server.folder("shouts")
    folder.mkdir(parents=True)
    (folder / "mark.txt").write_text("!")
    (folder / "berth.json").write_text('{"task": "shouting"}')
    assert server.load("shouts").status_code == 200, server.log()
    assert server.invoke("shouts", "ahoy").json() == "AHOY!"
    assert_the_others_are_named(server)


def assert_the_others_are_named(server: Server) -> None:
    tiny_bert(server.folder("mumbles"))
    (server.folder("mumbles") / "berth.json").write_text('{"task": "shoutin"}')
    refused = server.load("mumbles")
    assert refused.status_code == 400
    assert "did you mean shouting?" in refused.json()["message"]
