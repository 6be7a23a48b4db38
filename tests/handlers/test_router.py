"""Several tasks in one archive: which is asked, by what name, with what body; groups, pieces and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from container.archive.describe import describe
from container.archive.manifest import Manifest
from container.archive.tasks import names
from container.errors import BadAnswer, BadArchive, BadInput, Failure
from container.handler import Context, Handler, Parts, Ready
from container.model import opening, pipeline
from container.model.opening import example_of
from container.model.resolve import place_of
from container.payload import Payload
from handlers.router import Member, Router
from tests.makers import tiny_bert
from tests.server import write_handler, write_script

WHO = """
import json
def model_fn(model_dir):
    import utils
    return utils.NAME
def input_fn(body, content_type):
    return body if isinstance(body, str) else list(body)
def predict_fn(value, model):
    return {"model": model, "got": value}
"""


ECHO = """
from container.handler import Handler
class Echo(Handler):
    def predict(self, batch):
        return batch
"""


class Shouts(Handler):
    """Answers a text in capitals, in steps; "fail" is an error of one input."""

    example = Payload(b'{"inputs": "hello"}')

    def __init__(self, mark: str = "!", batched: bool = True) -> None:
        self.mark = mark
        self.batched = batched
        self.batches: list[int] = []

    def size(self, value: Any) -> int:
        return len(value["inputs"])

    def steps(self, batch: list[Any]) -> Iterator[Any]:
        self.batches.append(len(batch))
        yield None
        yield Ready({0: self.answer(batch[0])})
        if len(batch) > 1:
            yield Parts({1: Payload(b"...", "text/plain")})
        yield [self.answer(each) for each in batch]

    def answer(self, value: Any) -> Any:
        return BadInput("no") if value["inputs"] == "fail" else value["inputs"].upper() + self.mark


def router(**handlers: Handler) -> Router:
    members = {name: Member(handler, True) for name, handler in handlers.items()}
    return Router(members, {name: name for name in handlers})


def ask(handler: Handler, body: Any, content_type: str = "application/json", attributes: str = "") -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    ((_, result),) = [
        pair
        for results in pipeline.answer(handler, [Payload(raw, content_type, attributes=attributes)], 4096, 32)
        if isinstance(results, list)
        for pair in results
    ]
    return result.message if isinstance(result, Failure) else json.loads(result.body)


@pytest.mark.parametrize(
    "body, attributes",
    [
        ({"process": "loud", "inputs": "a"}, ""),
        ({"task": "loud", "inputs": "a"}, ""),
        ({"process": " LOUD ", "input": "a"}, ""),
        ({"inputs": "a"}, "task=loud"),
        ({"inputs": "a"}, "trace=1; process=Loud"),
        ({"process": "loud", "inputs": "a"}, "task=soft"),
    ],
)
def test_the_field_comes_first_then_the_header(body: Any, attributes: str) -> None:
    handler = router(loud=Shouts("!"), soft=Shouts("."))
    assert ask(handler, body, attributes=attributes) == "A!"


@pytest.mark.parametrize(
    "body, said",
    [
        ({"inputs": "a"}, "no task is named; this model has the tasks loud, soft: name one in the field process or"),
        ({"process": "mute", "inputs": "a"}, "there is no task called a text, 'mute'; this model has the tasks loud,"),
        ({"process": 3, "inputs": "a"}, "there is no task called a number, 3; this model has the tasks loud, soft"),
        (b"[1]", "no task is named; this model has the tasks loud, soft"),
        (b"{", "the body is not JSON"),
    ],
)
def test_who_names_no_task_or_another_is_told_which_there_are(body: Any, said: str) -> None:
    assert said in ask(router(loud=Shouts(), soft=Shouts()), body)


def test_requests_of_one_batch_go_to_their_tasks_in_groups_and_come_back_in_order() -> None:
    loud, soft = Shouts("!"), Shouts(".", batched=False)
    handler = router(loud=loud, soft=soft)
    asked = [("loud", "a"), ("soft", "b"), ("loud", "fail"), ("soft", "c")]
    payloads = [Payload(json.dumps({"task": name, "inputs": text}).encode()) for name, text in asked]
    found: dict[int, Any] = {}
    parts: list[int] = []
    for results in pipeline.answer(handler, payloads, 4096, 32):
        if isinstance(results, Parts):
            parts += results
        else:
            found.update(results or ())
    assert [found[0].body, found[1].body, found[3].body] == [b'"A!"', b'"B."', b'"C."']
    assert (found[2].code, found[2].message) == ("request.input", "no")
    assert parts == [0]
    assert (loud.batches, soft.batches) == ([2], [1, 1])
    assert handler.size(handler.decode(payloads[2])) == 4


def test_a_task_that_gives_too_few_outputs_is_named() -> None:
    class GivesOne(Shouts):
        def steps(self, batch: list[Any]) -> Iterator[Any]:
            yield ["one"]

    handler = router(loud=GivesOne())
    values = [handler.decode(Payload(b'{"task": "loud", "inputs": "a"}'))] * 2
    with pytest.raises(BadAnswer, match="task loud gave 1 outputs for 2 inputs"):
        handler.predict(values)


def test_the_example_is_one_of_a_tasks_own_with_its_name() -> None:
    handler = router(loud=Shouts())
    assert ask(handler, handler.example.body) == "HELLO!"
    assert example_of(router(quiet=Handler())) is None


# --- archives --------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A BERT without code, two scripts with the same module names, and a left-over of a notebook."""
    tiny_bert(tmp_path / "vectors")
    write_script(tmp_path / "first", WHO, utils="NAME = 'the first'")
    write_script(tmp_path / "second", WHO, utils="NAME = 'the second'")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "x.py").write_text("")
    return tmp_path


def test_an_archive_of_models_is_one_model_with_a_router(archive: Path) -> None:
    manifest = describe(archive)
    assert (manifest.kind, manifest.task, place_of(manifest)) == ("tasks", "router", "guests")
    assert list(manifest.tasks) == ["first", "second", "vectors"]
    assert manifest.weights_bytes == manifest.tasks["vectors"].weights_bytes > 0
    opened = opening.open_model(manifest, Context("several"))
    try:
        handler = opened.handler
        assert opened.bytes > 0 and "vectors.load" in opened.times_ms
        assert ask(handler, {"task": "first", "x": 1}) == {"model": "the first", "got": '{"task": "first", "x": 1}'}
        assert ask(handler, {"process": "second"})["model"] == "the second"
        assert ask(handler, b"\x00", "image/png", "task=second") == {"model": "the second", "got": [0]}
        for name in ("vectors", "embeddings", "feature-extraction"):
            assert len(ask(handler, {"process": name, "input": "a b"})) == 32
        assert len(ask(handler, handler.example.body)) == 2
    finally:
        opened.close()


def test_a_task_may_be_called_as_its_folder_or_as_what_it_does_if_no_other_does_that() -> None:
    def part(task: str) -> Manifest:
        return Manifest("folder", "", task=task)

    assert names({"Bart-Large": part("summarization"), "gpt2": part("text_generation")}) == {
        "bart_large": "Bart-Large",
        "summarization": "Bart-Large",
        "text2text_generation": "Bart-Large",
        "gpt2": "gpt2",
        "text_generation": "gpt2",
    }
    assert names({"a": part("embeddings"), "b": part("embeddings"), "c": part("")}) == {"a": "a", "b": "b", "c": "c"}
    assert names({"summarization": part("embeddings"), "x": part("summarization")})["summarization"] == "summarization"


def test_the_selector_may_have_another_name(archive: Path) -> None:
    (archive / "berth.json").write_text('{"options": {"selector": "kind"}, "timeout_s": 9}')
    manifest = describe(archive)
    assert manifest.settings.timeout_s == 9
    opened = opening.open_model(manifest, Context("several"))
    try:
        assert ask(opened.handler, {"kind": "first"})["model"] == "the first"
        assert ask(opened.handler, {"process": "second"})["model"] == "the second"
    finally:
        opened.close()


def test_what_the_parts_wish_is_granted_to_the_whole_and_two_environments_are_not(archive: Path) -> None:
    (archive / "first" / "berth.json").write_text('{"isolation": "own", "timeout_s": 5}')
    (archive / "second" / "berth.json").write_text('{"pin": true, "timeout_s": 55}')
    (archive / "first" / "code" / "requirements.txt").write_text("six")
    manifest = describe(archive)
    wished = manifest.settings
    assert (wished.isolation, wished.pin, wished.timeout_s, place_of(manifest)) == ("own", True, 55, "own")
    assert manifest.requirements.endswith("first/code/requirements.txt")
    (archive / "second" / "code" / "requirements.txt").write_text("six")
    with pytest.raises(BadArchive, match=r"first and second each have a requirements\.txt"):
        describe(archive)


def test_a_part_that_does_not_open_is_named_and_the_others_are_closed(archive: Path) -> None:
    write_script(archive / "third", "def model_fn(d):\n    raise OSError('no adapter')\ndef predict_fn(d, m): ...")
    with pytest.raises(Exception, match=r"in third/: .*no adapter"):
        opening.open_model(describe(archive), Context("several"))
    (archive / "third" / "berth.json").write_text('{"tasc": 1}')
    with pytest.raises(BadArchive, match=r"unknown key tasc"):
        describe(archive)


def test_a_folder_that_is_no_model_among_several_is_named(archive: Path) -> None:
    (archive / "notes").mkdir()
    (archive / "notes" / "readme.txt").write_text("hello")
    with pytest.raises(BadArchive, match="first and second and vectors are models, notes is none"):
        describe(archive)


def test_a_handler_class_reads_its_requests_as_they_were_sent(tmp_path: Path) -> None:
    write_handler(tmp_path / "echo", ECHO)
    tiny_bert(tmp_path / "vectors")
    opened = opening.open_model(describe(tmp_path), Context("several"))
    try:
        assert ask(opened.handler, {"task": "echo", "input": 1}) == {"task": "echo", "input": 1}
    finally:
        opened.close()
