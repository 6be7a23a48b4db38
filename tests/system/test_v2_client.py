"""tritonclient against models of several kinds, through the real server."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.makers import tiny_bert
from tests.rows.graphs import TinyResNet, scripted, write_repository
from tests.server import Server, write_handler, write_script

CONFIG = """
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1000 ] }
"""


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield client
    client.close()


def words(*texts: str) -> triton.InferInput:
    given = triton.InferInput("text", [len(texts)], "BYTES")
    given.set_data_from_numpy(np.array([text.encode() for text in texts], object))
    return given


def test_a_hugging_face_folder_takes_texts_and_gives_vectors(
    server: Server, client: triton.InferenceServerClient
) -> None:
    tiny_bert(server.folder("bert"))
    server.load("bert").raise_for_status()
    vectors = client.infer("bert", [words("a b c", "d e")], request_id="4")
    assert vectors.get_response()["model_name"] == "bert"
    usual = np.array(server.invoke("bert", {"inputs": ["a b c", "d e"]}).json(), np.float32)
    np.testing.assert_allclose(vectors.as_numpy("output"), usual, atol=1e-6)


def test_a_script_gets_what_came(server: Server, client: triton.InferenceServerClient) -> None:
    code = """
def model_fn(model_dir):
    return None
def input_fn(body, content_type):
    return f"{content_type} {len(body)}"
def predict_fn(data, model):
    return data
"""
    write_script(server.folder("script"), code)
    server.load("script").raise_for_status()
    got = server.http.post("/v2/models/script/infer", content=b"whatever")
    assert got.json() == "application/vnd.kserve.v2+json 8"


def test_a_script_without_input_fn_gets_the_tensors_as_its_client_wrote_them(server: Server) -> None:
    code = """
def model_fn(d):
    return 2
def predict_fn(data, model):
    return [model * data["inputs"][0]["data"][0]]
"""
    write_script(server.folder("plain"), code)
    server.load("plain").raise_for_status()
    asked = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT32", "data": [21]}]}
    assert server.http.post("/v2/models/plain/infer", json=asked).json() == [42]
    assert server.invoke("plain", asked, content_type="application/vnd.kserve.v2+json").json() == [42]


def test_a_handler_class_is_asked_in_v2_wherever_the_request_comes_in(
    server: Server, client: triton.InferenceServerClient
) -> None:
    code = """
from container.handler import Handler
class Loud(Handler):
    def predict(self, batch):
        return [[each.upper() for each in one["inputs"]] for one in batch]
"""
    write_handler(server.folder("loud"), code)
    server.load("loud").raise_for_status()
    assert client.infer("loud", [words("a", "b")]).as_numpy("output").tolist() == [b"A", b"B"]
    asked = {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}]}
    answer = server.invoke("loud", asked, content_type="application/vnd.kserve.v2+json").json()
    assert answer["outputs"][0]["data"] == ["A", "B"]


def test_the_repository_is_worked_from_the_client(server: Server, client: triton.InferenceServerClient) -> None:
    write_repository(server.folder("net"), CONFIG, scripted(TinyResNet().eval()))
    client.load_model("net")
    client.load_model("net")
    assert {"name": "net", "state": "READY", "reason": ""} in client.get_model_repository_index()
    assert client.is_model_ready("net")
    given = triton.InferInput("x", [2, 3, 8, 8], "FP32")
    given.set_data_from_numpy(np.zeros((2, 3, 8, 8), np.float32))
    assert client.infer("net", [given]).as_numpy("y").shape == (2, 1000)
    client.unload_model("net")
    assert not client.is_model_ready("net")
    with pytest.raises(InferenceServerException, match="no model 'net' is registered"):
        client.infer("net", [given])
    with pytest.raises(InferenceServerException, match=r"no model .gone. in the repository"):
        client.load_model("gone")


def test_bad_headers_sizes_and_bodies_are_the_callers_and_the_server_lives(server: Server) -> None:
    write_repository(server.folder("lives"), CONFIG, scripted(TinyResNet().eval()))
    server.load("lives").raise_for_status()
    good = b'{"inputs": [{"name": "x", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": %s}]}'
    good %= str([0.0] * 192).encode()
    lies = good.replace(b'"data": ', b'"parameters": {"binary_data_size": 99999999999999}, "ignored": ')
    bad = [
        ({"inference-header-content-length": size}, good)
        for size in ("-1", "x", "1e9", str(len(good) + 1), "9" * 30, "", "5, 5")
    ]
    bad += [({}, body) for body in (b"", b"{", b"[]", b"\xff", good[:-1], lies, b"[" * 100_000)]
    for headers, body in bad:
        got = server.http.post("/v2/models/lives/infer", content=body, headers=headers)
        assert (got.status_code, sorted(got.json())) == (400, ["error", "reason"]), (headers, body[:50])
    for size in ("-1", "x", "", str(len(good) + 1), "5;json-header-size=5"):
        kind = f"application/vnd.sagemaker-triton.binary+json;json-header-size={size}"
        got = server.invoke("lives", good, content_type=kind)
        assert (got.status_code, got.json()["reason"]) == (400, "request.malformed"), size
    twice = [("inference-header-content-length", "5"), ("inference-header-content-length", "5")]
    assert server.http.post("/v2/models/lives/infer", content=good, headers=twice).status_code == 400
    assert server.http.post("/v2/models/lives/infer", content=good).status_code == 200
    assert server.http.get("/ping").status_code == 200
    assert "Traceback" not in server.log()
