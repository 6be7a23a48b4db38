"""Bodies that lie about themselves, that explode, that carry code: refused in our words, and nobody else notices."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.handlers.models import resnet
from tests.server import Server

NPY = "application/x-npy"
NPZ = "application/x-npz"


class Marks:
    """Unpickling one creates the file ``path``: code was run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def npy(array: Any, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def npy_header(text: bytes, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


@pytest.mark.parametrize("content_type", [NPY, NPZ, "application/octet-stream", "application/x-pickle", "image/png"])
@pytest.mark.parametrize("model", ["bert", "fine"])
def test_no_pickle_in_any_wrapping_is_ever_unpickled(
    server: Server, tmp_path: Path, content_type: str, model: str
) -> None:
    mark = tmp_path / "was-run"
    evil = np.empty(1, dtype=object)
    evil[0] = Marks(mark)
    packed, torched = io.BytesIO(), io.BytesIO()
    np.savez(packed, inputs=evil)
    torch.save({"inputs": Marks(mark)}, torched)
    bodies = [npy(evil, allow_pickle=True), packed.getvalue(), torched.getvalue(), pickle.dumps(Marks(mark))]
    for body in bodies:
        answer = server.invoke(model, body, content_type=content_type)
        assert answer.status_code in (200, 400, 406, 415, 500), answer.text
    assert not mark.exists()


LYING_NPY = [
    npy_header(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", pickle.dumps([1])),
    npy_header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}\n"),
    npy_header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}\n", b"\0" * 8),
    npy_header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (2**62, 2**62)}\n"),
    npy_header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (" + b"1," * 500 + b")}\n", b"\0" * 8),
    npy_header(b"{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': ()}\n"),
    npy_header(b"(" * 60_000),
    b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFFF),
    b"\x93NUMPY\x09\x00\x00\x00",
    b"\x93NUMPY",
]


@pytest.mark.parametrize("body", LYING_NPY)
def test_an_npy_that_lies_is_a_bad_request(server: Server, body: bytes) -> None:
    answer = server.invoke("fine", body, content_type=NPY)
    assert (answer.status_code, answer.json()["reason"]) == (400, "request.malformed"), answer.text


DEEP = 100_000
JSON = [
    b"[" * DEEP,
    b"[" * DEEP + b"]" * DEEP,
    b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    b'{"inputs": ' + b"[" * 500 + b"]" * 500 + b"}",
    b'{"inputs": 1e999}',
    b'{"inputs": -1e999, "parameters": {"top_k": 1e308}}',
    b'{"inputs": ' + b"9" * 100_000 + b"}",
    b'{"inputs": 1' + b"0" * 5000 + b".5}",
    b'{"inputs": NaN}',
    b'{"inputs": "\\ud800"}',
    b'{"inputs": "\xff\xfe"}',
    b'{"inp\x9b\x92uts": "a"}',
    b'{"inputs": "a\\u0000b"}',
    b'{"inputs": null, "inputs": ["a"]}',
    b'{"inputs": {"a": {"b": []}}}',
    b'{"inputs": ["a", 1, null, [], {}]}',
    b'{"inputs": "' + b"a " * 500_000 + b'"}',
    b'{"inputs": ' + b'["' + b'","' * 20_000 + b'"]}',
    b'{"parameters": {"truncation": -9223372036854775809}, "inputs": "a"}',
    b'{"inputs": [18446744073709551616]}',
    b"\xef\xbb\xbf",
    b"\0" * 1000,
    b"",
    b" " * 100_000,
    b"0",
    b'"',
    b"truefalse",
]


@pytest.mark.parametrize("body", JSON, ids=[f"{body[:24]!r}-{len(body)}" for body in JSON])
@pytest.mark.parametrize("model", ["bert", "fine"])
def test_json_of_any_shape_is_answered_or_refused_in_our_words(server: Server, model: str, body: bytes) -> None:
    answer = server.invoke(model, body)
    assert answer.status_code in (200, 400), (answer.status_code, answer.text[:500])
    if answer.status_code == 400:
        assert answer.json()["reason"] in ("request.malformed", "request.input"), answer.text


@pytest.mark.parametrize("kind", ["text/csv", "text/plain; charset=utf-7", "text/plain; charset=../../x", "a/b" * 1000])
def test_other_media_types_with_bytes_that_are_none_of_it(server: Server, kind: str) -> None:
    for body in (b"\xff" * 100, b'"' * 1001, b"," * 100_000, b"\0"):
        answer = server.invoke("fine", body, content_type=kind)
        assert answer.status_code in (200, 400, 415), answer.text


@pytest.mark.parametrize("accept", ["*/*;q=nan", "a/b;q=1e9", "," * 5000, "/", "application/json;q=-1", "*"])
def test_an_accept_that_is_none(server: Server, accept: str) -> None:
    assert server.invoke("fine", [1], accept=accept).status_code in (200, 400, 406)


def png(width: int, height: int, *, chunks: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunks
    return start + chunk(b"IDAT", zlib.compress(b"\0" * 10_000_000, 9)) + chunk(b"IEND", b"")


def images() -> list[bytes]:
    fine = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(fine, "JPEG")
    jpeg = fine.getvalue()
    gif = io.BytesIO()
    Image.new("P", (8, 8)).save(gif, "GIF", save_all=True, append_images=[Image.new("P", (8, 8))] * 300)
    text = struct.pack(">I", 4) + b"zTXt" + b"a\0\0" + b"x"
    return [
        png(50_000, 50_000),
        png(2**31 - 1, 2**31 - 1),
        png(0, 0),
        png(1, 1, chunks=text),
        jpeg[: len(jpeg) // 2],
        jpeg[:20],
        b"\xff\xd8" + b"\xff\xe1\xff\xff" * 10_000,
        gif.getvalue()[:-50],
        b"II*\0" + b"\xff" * 200,
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
        b"",
    ]


def test_pictures_that_explode_or_break_off_are_refused_each_by_itself(server: Server) -> None:
    resnet(server.folder("eye"))
    server.load("eye").raise_for_status()
    try:
        for body in images():
            for kind in ("image/png", "image/jpeg", "application/x-image"):
                answer = server.invoke("eye", body, content_type=kind)
                assert answer.status_code in (400, 415), (answer.status_code, body[:40], answer.text[:300])
    finally:
        server.unload("eye").raise_for_status()


V2 = [
    ("application/vnd.sagemaker-triton.binary+json;json-header-size=-1", b"{}"),
    ("application/vnd.sagemaker-triton.binary+json;json-header-size=99999999999999999999", b"{}"),
    ("application/vnd.sagemaker-triton.binary+json;json-header-size=3", b"{}"),
    ("application/vnd.sagemaker-triton.binary+json;json-header-size=two", b"{}"),
    ("application/vnd.sagemaker-triton.binary+json;json-header-size=", b"{}"),
    ("application/vnd.sagemaker-triton.binary+json;json-header-size=0x2", b"{}"),
    ("application/vnd.sagemaker-triton.binary+json;json-header-size=2;json-header-size=0", b"{}"),
    ("application/vnd.sagemaker-triton.binary+json", b"{}"),
]


@pytest.mark.parametrize(("content_type", "body"), V2, ids=[kind.partition(";")[2] for kind, _ in V2])
def test_a_json_header_size_is_believed_only_if_it_is_one(server: Server, content_type: str, body: bytes) -> None:
    for model in ("bert", "fine"):
        answer = server.invoke(model, body, content_type=content_type)
        assert answer.status_code in (400, 415), answer.text
