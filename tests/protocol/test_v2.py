"""KServe v2 bodies, with the real tritonclient as the oracle for what is right, and fuzz for what is not."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st

from container.errors import BadInput, BadRequest, NotAcceptable
from container.protocol import dtypes, v2, v2_header

BINARY = v2_header.BINARY_TYPE
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
#: tritonclient has no BF16 without the binary form, and no JSON for FP16.
NAMES = [name for name in dtypes.NAMES if name != "BF16"]


def text_of(array: np.ndarray) -> list[str]:
    return [each.decode() if isinstance(each, bytes) else str(each) for each in array.ravel()]


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    """A datatype and an array of it."""
    name = draw(st.sampled_from(NAMES))
    shape = draw(SHAPES)
    count = math.prod(shape)
    if name == "BYTES":
        texts = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=count, max_size=count))
        array = np.array([text.encode() for text in texts] + [None], object)[:-1]
        return name, array.reshape(shape)
    dtype = dtypes.to_numpy(name)
    if dtype.kind == "b":
        values: st.SearchStrategy[Any] = st.booleans()
    elif dtype.kind == "f":
        values = st.floats(allow_nan=False, allow_infinity=False, width={2: 16, 4: 32, 8: 64}[dtype.itemsize])  # type: ignore[call-overload]
    else:
        values = st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    return name, np.array(draw(st.lists(values, min_size=count, max_size=count)), dtype).reshape(shape)


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    if wanted.dtype.hasobject:
        assert text_of(found) == text_of(wanted)
    else:
        np.testing.assert_array_equal(found, wanted)


@given(st.lists(st.tuples(tensors(), st.booleans()), min_size=1, max_size=3), st.booleans())
def test_what_tritonclient_writes_is_read(given_tensors: list[tuple[tuple[str, np.ndarray], bool]], ask: bool) -> None:
    inputs = []
    for index, ((name, array), binary) in enumerate(given_tensors):
        each = triton.InferInput(f"in{index}", list(array.shape), name)
        each.set_data_from_numpy(array, binary_data=binary or name == "FP16")
        inputs.append(each)
    outputs = [triton.InferRequestedOutput("out", binary_data=ask)]
    body, size = triton.InferenceServerClient.generate_request_body(inputs, outputs=outputs, request_id="9")
    request = v2.read(body, v2_header.content_type(size) if size else "application/json")
    assert (request.id, request.outputs, request.raw) == ("9", [v2.Wanted("out", ask)], None)
    for index, ((name, array), _) in enumerate(given_tensors):
        tensor = request.inputs[index]
        assert (tensor.name, tensor.datatype, tensor.shape) == (f"in{index}", name, array.shape)
        assert_same(tensor.data, array)


def test_without_outputs_named_tritonclient_asks_for_all_of_them_in_binary() -> None:
    each = triton.InferInput("a", [1], "INT8")
    each.set_data_from_numpy(np.zeros(1, np.int8))
    body, size = triton.InferenceServerClient.generate_request_body([each])
    request = v2.read(body, v2_header.content_type(size))
    assert (request.outputs, request.binary) == (None, True)


@given(st.lists(st.tuples(tensors(), st.booleans()), min_size=1, max_size=3))
def test_what_is_written_tritonclient_reads(given_tensors: list[tuple[tuple[str, np.ndarray], bool]]) -> None:
    outputs = [
        (v2.Tensor(f"out{index}", name, array.shape, array), binary)
        for index, ((name, array), binary) in enumerate(given_tensors)
    ]
    body, kind = v2.write(v2.Reply("m", "3", outputs, "9"))
    size = v2_header.header_size(kind)
    assert (size is None) == (kind == "application/json") == (not any(binary for _, binary in outputs))
    result = triton.InferenceServerClient.parse_response_body(body, header_length=size)
    assert {key: result.get_response()[key] for key in ("model_name", "model_version", "id")} == {
        "model_name": "m",
        "model_version": "3",
        "id": "9",
    }
    for tensor, _ in outputs:
        assert result.get_output(tensor.name)["datatype"] == tensor.datatype
        assert_same(result.as_numpy(tensor.name), tensor.data)


def one(datatype: str, shape: list[int], data: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "a", "shape": shape, "datatype": datatype, "data": data}]}).encode()


@pytest.mark.parametrize("nest", [lambda a: a.ravel(), lambda a: a, lambda a: a.reshape(2, 6), lambda a: a[None, None]])
def test_data_may_be_nested_in_any_way_if_the_number_of_elements_is_right(
    nest: Callable[[np.ndarray], np.ndarray],
) -> None:
    array = np.arange(12, dtype=np.int32).reshape(2, 2, 3)
    (tensor,) = v2.read(one("INT32", [2, 2, 3], nest(array).tolist()), "application/json").inputs
    assert_same(tensor.data, array)


def test_what_is_written_as_a_request_is_read_again() -> None:
    words = np.array([b"a", "ü".encode()], object)
    inputs = [v2.Tensor("n", "FP32", (1, 2), np.ones((1, 2), np.float32)), v2.Tensor("w", "BYTES", (2,), words)]
    found = v2.read(*v2.write_request(inputs)).inputs
    for tensor, wanted in zip(found, inputs, strict=True):
        assert tensor[:3] == wanted[:3]
        assert_same(tensor.data, wanted.data)


def test_bf16_is_rounded_to_even_when_read_and_becomes_numbers_when_written_as_json() -> None:
    import torch

    values = [1.0, -2.5, 3.14159, 1e-30, 65504.0, 1.00390625, 1.01171875]
    (tensor,) = v2.read(one("BF16", [len(values)], values), "application/json").inputs
    theirs = torch.tensor(values).to(torch.bfloat16)
    assert tensor.data.tolist() == theirs.view(torch.uint16).tolist()
    body, _ = v2.write(v2.Reply("m", "1", [(tensor, False)]))
    assert json.loads(body)["outputs"][0]["data"] == theirs.float().tolist()


def test_numbers_that_json_does_not_have_are_written_as_null_and_in_binary_as_they_are() -> None:
    array = np.array([np.nan, np.inf, 1.0], np.float32)
    tensor = v2.Tensor("a", "FP32", array.shape, array)
    assert json.loads(v2.write(v2.Reply("m", "1", [(tensor, False)]))[0])["outputs"][0]["data"] == [None, None, 1.0]
    body, _ = v2.write(v2.Reply("m", "1", [(tensor, True)]))
    assert body.endswith(array.tobytes())


def test_bytes_that_are_no_text_are_answered_in_binary_only() -> None:
    tensor = v2.Tensor("a", "BYTES", (1,), np.array([b"\xff"], object))
    with pytest.raises(NotAcceptable, match="binary_data"):
        v2.write(v2.Reply("m", "1", [(tensor, False)]))
    assert v2.write(v2.Reply("m", "1", [(tensor, True)]))[0].endswith(b"\x01\0\0\0\xff")


def test_a_header_of_no_bytes_makes_the_whole_body_one_raw_tensor() -> None:
    assert v2.read(b"\0\1", f"{BINARY};json-header-size=0") == v2.Request([], None, True, "", b"\0\1")


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "said"),
    [
        ("INT32", [1], [1.5], "not INT32"),
        ("INT32", [1], [True], "not INT32"),
        ("INT32", [1], ["1"], "not INT32"),
        ("INT32", [1], [None], "not INT32"),
        ("INT32", [2], [1, [2]], "not INT32"),
        ("BOOL", [1], [1], "not BOOL"),
        ("BYTES", [1], [1], "not BYTES"),
        ("FP32", [1], [True], "not FP32"),
        ("UINT8", [1], [256], "out of the range of UINT8"),
        ("UINT64", [1], [-1], "out of the range of UINT64"),
        ("INT64", [1], [2**63], "out of the range of INT64"),
        ("FP32", [1], [1e39], "out of the range of FP32"),
        ("FP16", [1], [70000], "out of the range of FP16"),
        ("INT32", [2], [1], "is 2 values, and 1 in data"),
        ("INT32", [1], [], "is 1 values, and 0 in data"),
        ("INT32", [], [1, 2], "is 1 values, and 2 in data"),
        ("INT32", [1], 1, "data that is no list"),
        ("INT32", [1], None, "data that is no list"),
        ("INT32", [2**40] * 3, [1], "and 1 in data"),
        ("INT32", [1] * 33, [1], "33 dimensions"),
        ("INT32", [0, 2**40, 2**40], [], "cannot have shape"),
        ("INT32", [-1], [1], "Expected `int` >= 0"),
        ("INT32", [1.0], [1], "got `float`"),
        ("INT7", [1], [1], "unknown datatype 'INT7'"),
        ("int32", [1], [1], "unknown datatype 'int32'"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_and_said(datatype: str, shape: list[Any], data: Any, said: str) -> None:
    with pytest.raises((BadInput, BadRequest)) as caught:
        v2.read(one(datatype, shape, data), "application/json")
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "Expected `object`"),
        (b"null", "Expected `object`"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs": [{}]}', "missing required field `name` - at `$.inputs[0]`"),
        (b'{"inputs": {"name": "a"}}', "Expected `array`"),
        (b'{"inputs": [], "id": 5}', "Expected `str`"),
        (b'{"inputs": [], "parameters": {"binary_data_output": "yes"}}', "true or false"),
        (b'{"inputs": [], "outputs": [{"name": "a", "parameters": {"binary_data": 1}}]}', "true or false"),
        (b'{"inputs": [], "outputs": [{"name": "a", "parameters": {"classification": 3}}]}', "classification"),
        (b'{"inputs": [' + b"[" * 100_000, "Expected `object`"),
        (b'{"x": ' + b"[" * 100_000, "nested too deeply"),
        (
            b'{"inputs": [{"name": "a", "shape": [1], "datatype": "INT8", "data": '
            + b"[" * 40
            + b"1"
            + b"]" * 40
            + b"}]}",
            "nested too deeply",
        ),
        (b'{"inputs": [{"name": "a", "shape": [1], "datatype": "INT8"}]}', "no data"),
        (
            b'{"inputs": [{"name": "a", "shape": [1], "datatype": "INT8", "parameters": {"shared_memory_region": 1}}]}',
            "shared memory",
        ),
    ],
)
def test_a_request_that_is_not_one_is_refused_and_said(body: bytes, said: str) -> None:
    with pytest.raises((BadInput, BadRequest)) as caught:
        v2.read(body, "application/json")
    assert said in caught.value.message


def test_an_input_given_twice_is_refused() -> None:
    twice = {"name": "a", "shape": [1], "datatype": "INT8", "data": [1]}
    with pytest.raises(BadRequest, match="given twice"):
        v2.read(json.dumps({"inputs": [twice, twice]}).encode(), "application/json")


def binary(
    size: Any, *, datatype: str = "INT32", shape: Any = (2,), behind: bytes = b"\0" * 8, more: str = ""
) -> bytes:
    """A request whose one tensor lies behind it; the media type is written in front, up to the first space."""
    head = {"name": "a", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
    encoded = json.dumps({"inputs": [head]}).encode()
    return f"{BINARY};json-header-size={len(encoded)}{more} ".encode() + encoded + behind


def read(message: bytes) -> v2.Request:
    kind, _, body = message.partition(b" ")
    return v2.read(body, kind.decode())


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (binary(-1), "binary_data_size of input 'a' is -1; 8 bytes are left"),
        (binary(9), "8 bytes are left"),
        (binary(2**62), "8 bytes are left"),
        (binary(10**30), "8 bytes are left"),
        (binary("8"), "8 bytes are left"),
        (binary(8.0), "8 bytes are left"),
        (binary(True), "8 bytes are left"),
        (binary([8]), "8 bytes are left"),
        (binary(4), "takes 8 bytes, 4 are there"),
        (binary(8, behind=b"\0" * 9), "9 bytes follow the JSON, the inputs take 8"),
        (binary(8, shape=[2**40, 2**40]), "8 are there"),
        (binary(8, shape=[1] * 33), "33 dimensions"),
        (binary(8, datatype="FP8"), "unknown datatype"),
        (binary(8, datatype="BYTES", shape=[3]), "has 3 elements of BYTES, but only 8 bytes are there"),
        (binary(8, datatype="BYTES", shape=[2**40]), "but only 8 bytes are there"),
        (binary(8, datatype="BYTES", shape=[1]), "4 bytes more than its 1 elements"),
        (binary(8, datatype="BYTES", behind=b"\xff\xff\xff\xff\0\0\0\0"), "element 0 of tensor 'a' reaches over"),
        (binary(8, datatype="BYTES", behind=b"\x02\0\0\0ab\0\0"), "ends before element 1 of 2"),
        (binary(8, more=";json-header-size=1"), "not 2 times"),
    ],
)
def test_a_size_that_lies_is_refused_before_anything_is_allocated(message: bytes, said: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((BadInput, BadRequest)) as caught:
            read(message)
        assert said in caught.value.message
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_data_both_in_the_json_and_behind_it_is_refused() -> None:
    fields = {"name": "a", "shape": [1], "datatype": "INT8", "data": [1], "parameters": {"binary_data_size": 1}}
    head = json.dumps({"inputs": [fields]}).encode()
    with pytest.raises(BadRequest, match="both data and binary_data_size"):
        v2.read(head + b"\1", v2_header.content_type(len(head)))


def check_outcome(body: bytes, kind: str) -> None:
    try:
        found = v2.read(body, kind)
    except (BadRequest, BadInput) as refused:
        assert refused.message
    else:
        assert isinstance(found, v2.Request)


@given(st.binary(max_size=200), st.integers(0, 250))
def test_whatever_the_bytes_the_outcome_is_a_request_or_an_error_of_ours(body: bytes, size: int) -> None:
    for kind in ("application/json", f"{BINARY};json-header-size={size}"):
        check_outcome(body, kind)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.fixed_dictionaries({}, optional={
    "inputs": st.lists(st.fixed_dictionaries({}, optional={
        "name": st.just("a") | JSON_VALUES,
        "shape": st.lists(st.integers(-1, 3)) | JSON_VALUES,
        "datatype": st.sampled_from(dtypes.NAMES) | JSON_VALUES,
        "data": JSON_VALUES,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 9) | JSON_VALUES}) | JSON_VALUES,
    }), max_size=2) | JSON_VALUES,
    "outputs": JSON_VALUES,
    "parameters": JSON_VALUES,
    "id": JSON_VALUES,
}), st.binary(max_size=20))  # fmt: skip
def test_whatever_the_fields_the_outcome_is_a_request_or_an_error_of_ours(
    fields: dict[str, Any], behind: bytes
) -> None:
    head = json.dumps(fields).encode()
    for body, kind in ((head, "application/json"), (head + behind, v2_header.content_type(len(head)))):
        check_outcome(body, kind)
