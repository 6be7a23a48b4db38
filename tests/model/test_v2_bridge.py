"""v2 requests to models that know nothing of tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from container.errors import BadInput, Failure
from container.handler import Handler
from container.model import pipeline
from container.payload import Payload
from container.protocol import codecs, npy, v2, v2_header

BINARY = v2_header.BINARY_TYPE


class Echo(Handler):
    """Remembers the body it was asked with; answers what ``says`` makes of it."""

    def __init__(self, says: Callable[[Any], Any]) -> None:
        self.says = says
        self.registered_name = "echo"
        self.asked: list[Payload] = []

    def decode(self, payload: Payload) -> Any:
        self.asked.append(payload)
        return codecs.decode(payload.body, payload.content_type)

    def predict(self, batch: list[Any]) -> list[Any]:
        return [self.says(value) for value in batch]


class Own(Echo):
    speaks_v2 = True


def tensor(name: str, datatype: str, data: list[Any], shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


def ask(handler: Handler, *inputs: dict[str, Any], kind: str = v2_header.JSON_TYPE, **more: Any) -> Payload | Failure:
    payload = Payload(json.dumps({"inputs": list(inputs), **more}).encode(), kind)
    (((_, answer),),) = [results for results in pipeline.answer(handler, [payload], 100, 10) if results]
    return answer


def outputs(answer: Payload | Failure) -> Any:
    assert isinstance(answer, Payload), answer
    assert answer.content_type == "application/json"
    return json.loads(answer.body)


def test_texts_become_inputs_and_vectors_one_tensor() -> None:
    model = Echo(lambda value: np.array([[len(text), 1.5] for text in value["inputs"]], np.float32))
    answer = outputs(ask(model, tensor("anything", "BYTES", ["sea", "ships"], [2, 1]), id="7"))
    assert (model.asked[0].content_type, json.loads(model.asked[0].body)) == (
        "application/json",
        {"inputs": ["sea", "ships"]},
    )
    assert answer == {
        "model_name": "echo",
        "model_version": "1",
        "id": "7",
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [2, 2], "data": [3.0, 1.5, 5.0, 1.5]}],
    }


def test_other_tensors_become_parameters() -> None:
    model = Echo(lambda value: [{"generated_text": "x"}])
    given = [tensor("max_new_tokens", "INT32", [5]), tensor("stop", "BYTES", ["a", "b"])]
    ask(model, *given, tensor("inputs", "BYTES", ["once"]), tensor("temperature", "BF16", [0.5]))
    assert json.loads(model.asked[0].body) == {
        "inputs": ["once"],
        "parameters": {"max_new_tokens": 5, "stop": ["a", "b"], "temperature": 0.5},
    }


@pytest.mark.parametrize(
    ("said", "data"),
    [
        ([{"label": "a"}, {"label": "b"}], ['{"label":"a"}', '{"label":"b"}']),
        ([[{"label": "a"}], [{"label": "b"}]], ['[{"label":"a"}]', '[{"label":"b"}]']),
        ({"label": "a"}, ['{"label":"a"}']),
        ([None], ["[null]"]),
        (["one", "two"], ["one", "two"]),
    ],
)
def test_what_is_no_array_comes_as_the_json_of_each_answer(said: Any, data: list[str]) -> None:
    (output,) = outputs(ask(Echo(lambda _: said), tensor("x", "BYTES", ["a", "b"])))["outputs"]
    assert output == {"name": "output", "datatype": "BYTES", "shape": [len(data)], "data": data}


def test_numbers_become_an_array_file() -> None:
    model = Echo(lambda value: value * 2)
    (output,) = outputs(ask(model, tensor("pixels", "FP32", [1.0, 2.0, 3.0, 4.0], [1, 2, 2])))["outputs"]
    assert model.asked[0].content_type == "application/x-npy"
    assert npy.read(model.asked[0].body).tolist() == [[[1.0, 2.0], [3.0, 4.0]]]
    assert (output["shape"], output["data"]) == ([1, 2, 2], [2.0, 4.0, 6.0, 8.0])


def test_an_image_in_bytes_goes_as_base64_and_a_raw_body_as_it_is() -> None:
    model = Echo(lambda value: [1.0])
    jpeg = b"\xff\xd8\xff"
    head = {"inputs": [{"name": "i", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 7}}]}
    encoded = json.dumps(head).encode()
    body = encoded + b"\3\0\0\0" + jpeg
    list(pipeline.answer(model, [Payload(body, f"{BINARY};json-header-size={len(encoded)}")], 100, 10))
    assert json.loads(model.asked[0].body) == {"inputs": ["/9j/"]}
    (((_, answer),),) = list(pipeline.answer(model, [Payload(jpeg, f"{BINARY};json-header-size=0")], 100, 10))
    assert (model.asked[1].body, model.asked[1].content_type) == (jpeg, "application/octet-stream")
    assert isinstance(answer, Payload)
    assert answer.content_type.startswith(BINARY)


def test_outputs_come_in_the_form_asked_for() -> None:
    model = Echo(lambda value: np.ones((1, 2), np.float32))
    wanted = [{"name": "output", "parameters": {"binary_data": True}}]
    answer = ask(model, tensor("x", "BYTES", ["a"]), outputs=wanted)
    assert isinstance(answer, Payload)
    size = v2_header.header_size(answer.content_type)
    assert answer.body[size:] == np.ones(2, np.float32).tobytes()
    other = ask(model, tensor("x", "BYTES", ["a"]), outputs=[{"name": "logits"}])
    assert isinstance(other, Failure)
    assert (other.code, other.message) == ("request.input", "unknown output 'logits'; this model has output")


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], "has no inputs"),
        ([tensor("a", "FP32", [1.0]), tensor("b", "FP32", [1.0])], "beside numbers no other input is read"),
        ([tensor("a", "INT8", [300])], "out of the range of INT8"),
    ],
)
def test_what_has_no_meaning_for_such_a_model_is_refused(inputs: list[dict[str, Any]], said: str) -> None:
    answer = ask(Echo(lambda value: value), *inputs)
    assert isinstance(answer, Failure)
    assert answer.code == BadInput.code
    assert said in answer.message


def test_other_media_types_and_handlers_that_speak_v2_get_what_came() -> None:
    for model, kind in ((Echo(len), "application/json"), (Own(len), "text/plain;vnd.x")):
        list(pipeline.answer(model, [Payload(b'{"inputs": []}', kind)], 100, 10))
        assert model.asked[0].body == b'{"inputs": []}'
    own = Own(lambda _: "fine")
    body, _ = v2.write_request([])
    list(pipeline.answer(own, [Payload(body, v2_header.JSON_TYPE)], 100, 10))
    assert own.asked[0].content_type == v2_header.JSON_TYPE
