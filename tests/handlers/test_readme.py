"""The handler that the guide shows is a handler that works."""

import json
import re
from pathlib import Path

import pytest

from container.archive.manifest import Manifest
from container.errors import BadInput
from container.handler import Context, Handler, Parts
from container.model import pipeline
from container.model.resolve import TASKS, resolve
from container.payload import Payload
from tests.handlers.models import ask, payload

README = Path(__file__).parents[2] / "handlers" / "README.md"
TESTS = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture
def doubler():
    names = {}
    exec(BLOCKS[0], names)
    return names["Doubler"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "scale.json").write_text('{"scale": 2}')
    return tmp_path


def test_the_first_example_answers_as_its_name_says(doubler, folder):
    handler = doubler()
    handler.load(folder, Context("doubler"))
    assert ask(handler, {"inputs": [1.5, 2]}) == [3, 4]
    several = [handler.decode(payload({"inputs": each})) for each in ([1], [2, 3])]
    assert [output.tolist() for output in handler.predict(several)] == [[2], [4, 6]]
    with pytest.raises(BadInput):
        handler.decode(payload({"input": [1]}))


def test_trying_it_without_a_server_prints_the_answer(doubler, folder, capsys, monkeypatch):
    (folder / "my-model").mkdir()
    (folder / "my-model" / "scale.json").write_text('{"scale": 2}')
    monkeypatch.chdir(folder)
    exec(BLOCKS[1], {"Doubler": doubler, "Path": Path, "Context": Context})
    assert capsys.readouterr().out == "b'[3.0,4.0]'\n"


def test_the_example_that_spells_tells_a_letter_a_step():
    names = {"Handler": Handler, "Parts": Parts, "Payload": Payload}
    exec(BLOCKS[2], names)
    told = list(pipeline.answer(names["Spells"](), [Payload(b'"ab"'), Payload(b'"c"')], 99, 9))
    letters = [{place: piece.body for place, piece in each.items()} for each in told if isinstance(each, Parts)]
    assert letters == [{0: b"a", 1: b"c"}, {0: b"b"}]
    assert [(place, last.body) for place, last in told[-1]] == [(0, b""), (1, b"")]


def test_every_task_that_can_be_reached_is_in_the_table_with_a_test_against_its_library():
    for task, target in TASKS.items():
        file = target.partition(":")[0].rpartition(".")[2]
        (row,) = (line for line in README.read_text().splitlines() if line.startswith(f"| `{file}.py` |"))
        named = re.findall(r"`(test_\w+)`", row)
        assert named and [name for name in named if f"def {name}(" not in TESTS] == []
        assert type(resolve(Manifest(kind="folder", model_dir="", task=task), None)).task == task


def test_examples_in_json_are_as_callers_would_write_them():
    for task in ("embeddings", "text_classification", "text_generation"):
        example = type(resolve(Manifest(kind="folder", model_dir="", task=task), None)).example
        assert json.loads(example.body)["inputs"]
