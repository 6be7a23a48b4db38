import msgspec
import pytest

from container.errors import BadInput, BadRequest, MediaType
from handlers import body
from tests.handlers.models import payload


class Asked(msgspec.Struct):
    temperature: float = 1.0
    top_k: int | None = None


@pytest.mark.parametrize(
    ("value", "kind", "inputs", "parameters"),
    [
        ({"inputs": "a"}, "application/json", "a", {}),
        ({"inputs": ["a"], "parameters": {"x": 1}}, "application/json", ["a"], {"x": 1}),
        ({"inputs": "a", "parameters": None}, "application/json", "a", {}),
        ({"inputs": "a", "normalize": True}, "application/json", "a", {"normalize": True}),
        ({"inputs": "a", "x": 1, "parameters": {"x": 2}}, "application/json", "a", {"x": 2}),
        ({"inputs": "a", "options": {}, "process": "t", "task": "t"}, "application/json", "a", {}),
        ("bare", "application/json", "bare", {}),
        (["a", "b"], "application/json", ["a", "b"], {}),
        (b"one text,\nof two lines\n", "text/plain", "one text,\nof two lines", {}),
        (b'first, with a comma\r\n\r\n"second"\n', "text/csv", ["first, with a comma", "second"], {}),
        (b'"says ""hi"", twice"\n"a","b"\n', "text/csv", ['says "hi", twice', '"a","b"'], {}),
        ("Zoë".encode("latin-1"), "text/csv; charset=latin-1", ["Zoë"], {}),
    ],
)
def test_every_form_of_a_request_comes_to_the_same(value, kind, inputs, parameters):
    assert body.read(payload(value, kind)) == (inputs, parameters)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"input": "a"}, r"inputs is missing: the body has 'input'.*is 'input' meant to be inputs\?"),
        ({}, "the body has no members"),
        ({"inputs": "a", "parameters": [1]}, "parameters is a list of 1; expected an object"),
    ],
)
def test_a_request_without_its_parts_says_which_and_what_came(value, said):
    with pytest.raises(BadInput, match=said):
        body.read(payload(value))


def test_bytes_are_not_text():
    with pytest.raises(MediaType, match=r"reads JSON, text/plain and text/csv, not image/png"):
        body.read(payload(b"\x89PNG", "image/png"))


def test_broken_json_is_a_malformed_request():
    with pytest.raises(BadRequest):
        body.read(payload(b'{"inputs": '))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (5, "inputs is a number, 5; expected a text or a list of texts"),
        (None, "inputs is null"),
        ({"a": 1}, "inputs is an object"),
        ([], "inputs is an empty list"),
        (["a", ["b"]], r"inputs\[1\] is a list of 1; expected a text"),
        (["a", True], r"inputs\[1\] is a boolean, True"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(inputs, said):
    with pytest.raises(BadInput, match=said):
        body.texts(inputs)


def test_one_text_and_a_list_of_one_are_told_apart():
    assert body.texts("a") == (["a"], True)
    assert body.texts(["a"]) == (["a"], False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temprature": 1}, r"unknown parameter 'temprature'; did you mean temperature\?"),
        ({"zzz": 1}, "unknown parameter 'zzz'; known: temperature, top_k"),
        ({"temperature": "hot"}, "parameter temperature is a text, 'hot': Expected `float`, got `str`"),
        ({"top_k": 1.5}, "parameter top_k is a number, 1.5: Expected `int | null`"),
        ({"num_beams": 4}, r"parameter num_beams \(a number, 4\) is not done here; known: temperature, top_k"),
    ],
)
def test_a_parameter_that_will_not_do_is_named_with_what_came_and_what_is_expected(given, said):
    with pytest.raises(BadInput) as caught:
        body.parameters(given, Asked, absent=("num_beams",))
    assert said.replace("\\", "") in str(caught.value)


def test_long_values_are_shortened_in_messages():
    assert body.shown("x" * 500) == "a text, '" + "x" * 56 + "..."
