from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import zipfile
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from container.errors import BadAnswer, BadRequest, MediaType, NotAcceptable, ServingError
from container.protocol import codecs, npy


def refusal(kind: type[ServingError], body: bytes, content_type: str) -> str:
    with pytest.raises(kind) as refused:
        codecs.decode(body, content_type)
    assert type(refused.value) is kind
    return refused.value.message


# --- reading ---


def test_a_missing_content_type_is_json() -> None:
    assert codecs.decode(b'{"inputs": [1, 2.5, "x", null, true]}', "") == {"inputs": [1, 2.5, "x", None, True]}


@pytest.mark.parametrize(
    "mark", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON;charset=UTF8"]
)
def test_json_is_json_whatever_stands_behind_the_type(mark: str) -> None:
    assert codecs.decode('"é"'.encode(), mark) == "é"


def test_json_in_another_charset_or_behind_a_byte_order_mark_is_read() -> None:
    assert codecs.decode('["é"]'.encode("utf-16"), "application/json; charset=utf-16") == ["é"]
    assert codecs.decode(b"\xef\xbb\xbf[1]", "application/json") == [1]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is empty; JSON was expected"),
        (b" \n", "the body is empty; JSON was expected"),
        (b"\xef\xbb\xbf", "the body is empty; JSON was expected"),
        (b'{"a": }', "(byte 6), near '{\"a\": }'"),
        (b"{'a': 1}", "(byte 1), near"),
        (b"[1, 2", "Input data was truncated (the body ends at byte 5)"),
        (b'{"a": 1} trailing', "trailing characters (byte 10), near"),
        (b'{"a": NaN}', "(byte 6), near"),
        (b"[1e999]", "out of range"),
        (b'["ok", "\xff"]', "not utf-8: invalid start byte at byte 8"),
    ],
)
def test_broken_json_is_refused_with_the_place(body: bytes, said: str) -> None:
    assert said in refusal(BadRequest, body, "application/json")


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000])
def test_json_nested_without_end_is_a_bad_request_and_no_crash(body: bytes) -> None:
    assert refusal(BadRequest, body, "application/json") == "the body's JSON is nested too deeply"


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b"1,2\n3,4\n", [[1, 2], [3, 4]]),
        (b"1,2.5\r\n-3e2,nan", None),
        (b"1,x\n3,4", [["1", "x"], ["3", "4"]]),
        (b"a,,b", [["a", "", "b"]]),
        (b"1,,2", [["1", "", "2"]]),
        (b'"a, b","c ""d"""\n"e\nf",g', [["a, b", 'c "d"'], ["e\nf", "g"]]),
        (b"1\n\n2\n", [[1], [2]]),
        (b"1_000,2", [["1_000", "2"]]),
        (b"\xef\xbb\xbf1,2", [[1, 2]]),
        ("é,1".encode(), [["é", "1"]]),
    ],
)
def test_csv_is_numbers_when_every_cell_is_one(body: bytes, rows: list[list[Any]] | None) -> None:
    found = codecs.decode(body, "text/csv")
    if rows is None:
        assert found[0] == [1.0, 2.5] and found[1][0] == -300.0 and math.isnan(found[1][1])
        assert all(type(cell) is float for row in found for cell in row)
    else:
        assert found == rows
        assert [[type(cell) for cell in row] for row in found] == [[type(cell) for cell in row] for row in rows]


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"", "empty"), (b"\n\n", "empty"), (b'1,"2', "in line 1"), (b'a\n"b"c', "in line 2"), (b"\xff", "not utf-8")],
)
def test_broken_csv_is_refused_with_the_line(body: bytes, said: str) -> None:
    assert said in refusal(BadRequest, body, "text/csv")


def test_text_is_read_in_its_charset() -> None:
    assert codecs.decode("é".encode("latin-1"), "text/plain; charset=iso-8859-1") == "é"
    assert codecs.decode("é".encode(), "text/plain") == "é"
    assert codecs.decode(b"", "text/plain") == ""


@pytest.mark.parametrize(
    "charset", ["klingon", "punycode", "unicode_escape", "rot13", "zip", "idna", "undefined", "a\0b"]
)
def test_a_charset_that_is_none_is_refused(charset: str) -> None:
    assert repr(charset) in refusal(MediaType, b"abc", f"text/plain; charset={charset}")


@pytest.mark.parametrize("kind", ["application/octet-stream", "image/jpeg", "image/png; a=b", "application/x-image"])
def test_bytes_stay_bytes(kind: str) -> None:
    assert codecs.decode(b"\xff\xd8\x00", kind) == b"\xff\xd8\x00"


def test_a_form_is_refused_with_the_flag_that_curl_needs() -> None:
    said = refusal(MediaType, b'{"inputs": "x"}', "application/x-www-form-urlencoded")
    assert "-H 'Content-Type: application/json'" in said


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    said = refusal(MediaType, b"", "application/x-parquet")
    assert said == "content type 'application/x-parquet' is not read here; known: " + ", ".join(
        row.media for row in codecs.TABLE
    )


def npy_of(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff{}",
        npy_of("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cos\nsystem\n."),
        npy_of("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", b"\0" * 4),
        npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", b"\0" * 4),
        npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", b"\0" * 8),
        npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"),
        npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999, 99999999999999999), }"),
        npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1" * 30 + ",), }", b"\0" * 4),
        npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 70 + "), }", b"\0" * 4),
        npy_of("{'descr': '<f3', 'fortran_order': False, 'shape': (1,), }", b"\0" * 3),
        npy_of("{'descr': '<U0', 'fortran_order': False, 'shape': (1,), }"),
        npy_of("{'descr': '<U1', 'fortran_order': False, 'shape': (1,), }", b"\xff\xff\xff\xff"),
        npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }" + " " * 20_000, b"\0" * 4),
        npy_of("{'shape': (-1,), 'descr': '<f4', 'fortran_order': False}"),
    ],
)
def test_an_npy_that_lies_or_hides_objects_is_refused(body: bytes) -> None:
    assert ".npy" in refusal(BadRequest, body, "application/x-npy")


def test_arrays_come_writable_in_native_order_and_in_their_layout() -> None:
    there = np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3))
    out = io.BytesIO()
    np.save(out, there)
    array = codecs.decode(out.getvalue(), "application/x-npy")
    assert array.dtype == np.dtype(np.float32) and array.dtype.isnative and array.flags.writeable
    np.testing.assert_array_equal(array, there)


def test_compressed_npz_is_read_and_pickles_in_it_are_not() -> None:
    good, bad = io.BytesIO(), io.BytesIO()
    np.savez_compressed(good, a=np.arange(3), b=np.ones((2, 2), np.float16))
    np.savez(bad, a=np.array([object()], dtype=object))
    arrays = codecs.decode(good.getvalue(), "application/x-npz")
    assert list(arrays) == ["a", "b"] and arrays["a"].tolist() == [0, 1, 2] and arrays["b"].dtype == np.float16
    assert "pickled objects" in refusal(BadRequest, bad.getvalue(), "application/x-npz")


def test_an_npz_that_unpacks_to_gigabytes_is_refused_before_it_does() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file, file.open("a.npy", "w") as member:
        for _ in range(257):
            member.write(bytes(1 << 20))
    assert f"unpacks to {257 << 20} bytes" in refusal(BadRequest, out.getvalue(), "application/x-npz")


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from([row.media for row in codecs.TABLE]) | st.text(max_size=30))
@example(b"PK\x05\x06" + bytes(18), "application/x-npz")
def test_any_bytes_of_any_type_are_read_or_refused_in_our_words(body: bytes, content_type: str) -> None:
    try:
        codecs.decode(body, content_type)
    except ServingError as refused:
        assert refused.message


@settings(deadline=None)
@given(st.data())
def test_a_damaged_npy_or_npz_is_read_or_refused_in_our_words(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["application/x-npy", "application/x-npz"]))
    body = bytearray(codecs.encode(np.arange(6, dtype=np.float32).reshape(2, 3), kind)[0])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body
    try:
        codecs.decode(bytes(body), kind)
    except BadRequest as refused:
        assert refused.message


# --- writing ---


def test_the_default_answer_is_json_of_whatever_has_a_tolist() -> None:
    value = {
        "array": np.eye(2, dtype=np.float32),
        "scalar": np.float64(0.5),
        "flag": np.bool_(True),
        "tensor": torch.ones(2, requires_grad=True),
        "half": torch.ones(1, dtype=torch.bfloat16),
        "rows": UserDict(a=(1, 2)),
        7: None,
    }
    body, kind = codecs.encode(value, "")
    assert kind == "application/json"
    assert json.loads(body) == {
        "array": [[1, 0], [0, 1]],
        "scalar": 0.5,
        "flag": True,
        "tensor": [1, 1],
        "half": [1],
        "rows": {"a": [1, 2]},
        "7": None,
    }


def test_nan_and_infinity_are_null_in_json_and_themselves_in_csv() -> None:
    value = np.array([np.nan, np.inf, 1.0])
    assert codecs.encode(value, "application/json") == (b"[null,null,1.0]", "application/json")
    assert codecs.encode(value, "text/csv") == (b"nan\ninf\n1.0\n", "text/csv")


@pytest.mark.parametrize(
    ("value", "body"),
    [
        (np.array([[1, 2], [3, 4]]), b"1,2\n3,4\n"),
        ([1.5, 2], b"1.5\n2\n"),
        (np.float32(0.5), b"0.5\n"),
        ("a, b", b'"a, b"\n'),
        ([["x", None], ["y", 1]], b"x,\ny,1\n"),
        ([{"label": "cat", "score": 0.5}, {"label": "dog", "score": 0.25}], b"label,score\ncat,0.5\ndog,0.25\n"),
        ({"label": "cat", "score": torch.tensor(0.5)}, b"label,score\ncat,0.5\n"),
    ],
)
def test_csv_has_a_line_for_each_row(value: object, body: bytes) -> None:
    assert codecs.encode(value, "text/csv") == (body, "text/csv")


@pytest.mark.parametrize(
    ("value", "accept", "kind"),
    [
        (b"\x00\xff", "", "application/octet-stream"),
        (b"\x00\xff", "*/*", "application/octet-stream"),
        (bytearray(b"a"), "application/octet-stream", "application/octet-stream"),
        ("plain", "text/plain", "text/plain"),
        ("é", "text/plain", "text/plain; charset=utf-8"),
        ([1], "text/plain", "text/plain"),
        ({"a": {"b": 1}}, "text/csv, application/json;q=0.5", "application/json"),
        ([[1], [2, 3]], "application/x-npy, */*;q=0.1", "application/json"),
    ],
)
def test_the_first_wanted_type_that_the_value_has_a_form_in_is_taken(value: object, accept: str, kind: str) -> None:
    assert codecs.encode(value, accept)[1] == kind


def test_the_default_settles_what_accept_leaves_open() -> None:
    assert codecs.encode([[1, 2]], "", default="text/csv") == (b"1,2\n", "text/csv")
    assert codecs.encode([[1, 2]], "application/json", default="text/csv") == (b"[[1,2]]", "application/json")


@pytest.mark.parametrize(
    ("value", "accept", "said"),
    [
        (b"a", "application/json", "offered: application/octet-stream (not as application/json: it is bytes)"),
        ({"a": [1]}, "text/csv", "offered: application/json, text/plain, application/x-npz"),
        (np.zeros((2, 2, 2)), "text/csv", "more than two dimensions"),
        ([{"a": 1}, {"b": 1}], "text/csv", "do not have the same names"),
        ("text", "application/x-npy", "it is a str, not an array"),
        (np.array([1j]), "application/json", "offered: application/x-npy, application/x-npz"),
        ([1], "image/png", "offered: application/json"),
    ],
)
def test_a_type_that_the_value_has_no_form_in_is_not_acceptable(value: object, accept: str, said: str) -> None:
    with pytest.raises(NotAcceptable) as refused:
        codecs.encode(value, accept)
    assert said in refused.value.message


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [object(), {(1, 2): 3}, {"a": lambda: 1}, deep()],
    ids=["object", "key", "code", "deep"],
)
def test_an_answer_without_any_form_is_the_models_fault(value: object) -> None:
    with pytest.raises(BadAnswer, match="cannot be written"):
        codecs.encode(value, "application/json, text/csv")


def test_tensors_keep_their_dtype_in_npy() -> None:
    body, kind = codecs.encode(torch.ones(2, 3, dtype=torch.float16, requires_grad=True), "application/x-npy")
    assert kind == "application/x-npy"
    array = np.load(io.BytesIO(body))
    assert array.dtype == np.float16 and array.shape == (2, 3)


def test_codecs_do_not_need_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from container.protocol import codecs; print(codecs.encode([1], ''))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "(b'[1]', 'application/json')\n"


# --- there and back ---

# msgspec reads whole numbers of over 64 bits as floats.
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(json_values)
def test_json_comes_back_as_it_went(value: object) -> None:
    body, kind = codecs.encode(value, "application/json")
    assert codecs.decode(body, kind) == value
    assert json.loads(body) == value


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(allow_nan=False), min_size=1, max_size=4), min_size=1, max_size=4))
def test_csv_of_numbers_comes_back_as_it_went(rows: list[list[float]]) -> None:
    body, kind = codecs.encode(rows, "text/csv")
    assert codecs.decode(body, kind) == rows


@settings(deadline=None)
@given(st.lists(st.lists(st.text().map(lambda text: f"x{text}"), min_size=1, max_size=4), min_size=1, max_size=4))
def test_csv_of_text_comes_back_as_it_went(rows: list[list[str]]) -> None:
    body, kind = codecs.encode(rows, "text/csv")
    assert codecs.decode(body, kind) == rows


arrays = hnp.arrays(
    hnp.boolean_dtypes()
    | hnp.integer_dtypes()
    | hnp.unsigned_integer_dtypes()
    | hnp.floating_dtypes()
    | hnp.unicode_string_dtypes(min_len=1),
    hnp.array_shapes(min_dims=0, min_side=0),
)


def same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return (
        one.shape == other.shape
        and one.dtype.newbyteorder("=") == other.dtype
        and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    )


@settings(deadline=None)
@given(arrays)
def test_arrays_come_back_as_they_went_and_numpy_agrees(array: np.ndarray[Any, Any]) -> None:
    body, kind = codecs.encode(array, "application/x-npy")
    assert same(array, codecs.decode(body, kind))
    assert same(np.load(io.BytesIO(body), allow_pickle=False).astype(array.dtype.newbyteorder("=")), npy.read(body))


@settings(deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), arrays, max_size=3))
def test_dicts_of_arrays_come_back_from_npz_as_they_went(value: dict[str, np.ndarray[Any, Any]]) -> None:
    body, kind = codecs.encode(value, "application/x-npz")
    back = codecs.decode(body, kind)
    assert list(back) == list(value) and all(same(value[name], back[name]) for name in value)


@pytest.mark.parametrize("kind", ["application/vnd.kserve.v2+json", "application/ld+json; charset=utf-8"])
def test_a_type_that_ends_in_json_is_json(kind):
    assert codecs.decode(b'{"a": [1]}', kind) == {"a": [1]}


def test_tensors_behind_json_are_not_taken_for_json():
    with pytest.raises(MediaType, match="is not read here"):
        codecs.decode(b"{}", "application/vnd.sagemaker-triton.binary+json;json-header-size=2")
