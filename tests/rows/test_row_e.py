"""Row E of the systems to move in from: Triton on a GPU multi-model endpoint, 200 copies of BERT in TorchScript."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.http as triton
from botocore.exceptions import ClientError

from tests.rows.graphs import BERT_CONFIG, tiny_bert, traced_bert, write_repository
from tests.rows.stand_in import Platform, multi_model

LENGTH = 512
COPIES = 200


@pytest.fixture(scope="module")
def bert() -> Any:
    torch.set_num_threads(1)
    return tiny_bert()


@pytest.fixture(scope="module")
def repository(bert: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds bert_model/config.pbtxt and bert_model/1/model.pt."""
    home = tmp_path_factory.mktemp("workspace")
    write_repository(home / "bert_model", BERT_CONFIG, traced_bert(bert))
    return home


@pytest.fixture(scope="module")
def platform(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with multi_model(tmp_path_factory.mktemp("row")) as started:
        assert started.prefix is not None
        archive = started.prefix / "model-0.tar.gz"
        subprocess.run(["tar", "-czf", str(archive), "-C", str(repository), "bert_model/"], check=True)
        for number in range(1, 3):
            os.link(archive, started.prefix / f"model-{number}.tar.gz")
        yield started


def tokens(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask [1, 512] of a sentence padded to the full length, INT32 as the row's tokenizer call casts them."""
    words = 12 + seed
    ids = np.zeros((1, LENGTH), np.int32)
    ids[0, :words] = np.random.default_rng(seed).integers(1, 64, words)
    return ids, (ids > 0).astype(np.int32)


def request(ids: np.ndarray, mask: np.ndarray) -> bytes:
    """The row's request, with flat data."""
    arrays = {"input_ids": ids, "attention_mask": mask}
    inputs = [
        {"name": name, "shape": [1, LENGTH], "datatype": "INT32", "data": array.ravel().tolist()}
        for name, array in arrays.items()
    ]
    return json.dumps({"inputs": inputs}).encode()


def expected(bert: Any, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        hidden: np.ndarray = bert(torch.from_numpy(ids).long(), torch.from_numpy(mask).long())[0].numpy()
    return hidden


def test_the_published_request_is_answered_as_transformers_computes_it(platform: Platform, bert: Any) -> None:
    for number in range(3):
        ids, mask = tokens(number)
        target = f"model-{number}.tar.gz"
        answer = platform.invoke(target, request(ids, mask), "application/octet-stream")
        assert answer["ContentType"] == "application/json"
        reply = json.loads(answer["Body"])
        (output,) = reply.pop("outputs")
        assert reply == {"model_name": target, "model_version": "1"}
        data = np.array(output.pop("data"), np.float32).reshape(output["shape"])
        assert output == {"name": "OUTPUT", "datatype": "FP32", "shape": [1, LENGTH, 32]}
        np.testing.assert_allclose(data, expected(bert, ids, mask), atol=1e-5)
    assert "output OUTPUT is FP32 [1, 512, 32] where config.pbtxt declares FP32 [512, 32]" in platform.server.log()


def test_a_mistake_in_the_request_is_the_callers(platform: Platform) -> None:
    ids, mask = tokens()
    good = json.loads(request(ids, mask))
    wrong_type = json.loads(request(ids, mask).replace(b"INT32", b"INT64"))
    short = {"inputs": [{**each, "shape": [1, 8], "data": each["data"][:8]} for each in good["inputs"]]}
    for body, said in (
        (wrong_type, "input 'input_ids' is INT64; the model takes INT32"),
        (short, "input 'input_ids' has shape [1, 8]; the model takes [1, 512]"),
        (
            {"inputs": good["inputs"][:1]},
            "input 'attention_mask' is missing; this model takes input_ids, attention_mask",
        ),
        ({**good, "outputs": [{"name": "logits"}]}, "unknown output 'logits'; this model has OUTPUT"),
    ):
        with pytest.raises(ClientError) as caught:
            platform.invoke("model-0.tar.gz", json.dumps(body).encode(), "application/octet-stream")
        assert caught.value.response["OriginalStatusCode"] == 400
        assert said in caught.value.response["OriginalMessage"]


def test_the_container_gives_the_codes_in_the_order_that_the_platform_expects(
    platform: Platform, repository: Path, bert: Any
) -> None:
    server = platform.server
    write_repository(server.folder("codes") / "bert_model", BERT_CONFIG, traced_bert(bert))
    assert server.load("codes").status_code == 200
    assert server.load("codes").status_code == 409
    assert "codes" in server.names()
    described = server.describe("codes")
    assert (described["state"], described["kind"], described["task"]) == ("ready", "triton", "tensors")
    ids, mask = tokens()
    as_json = server.invoke("codes", request(ids, mask), content_type="application/octet-stream")
    assert as_json.status_code == 200
    inputs = [
        triton.InferInput("input_ids", [1, LENGTH], "INT32"),
        triton.InferInput("attention_mask", [1, LENGTH], "INT32"),
    ]
    for each, array in zip(inputs, (ids, mask), strict=True):
        each.set_data_from_numpy(array, binary_data=True)
    body, size = triton.InferenceServerClient.generate_request_body(inputs)
    kind = f"application/vnd.sagemaker-triton.binary+json;json-header-size={size}"
    binary = server.invoke("codes", body, content_type=kind)
    assert binary.status_code == 200
    head = int(binary.headers["content-type"].partition("json-header-size=")[2])
    result = triton.InferenceServerClient.parse_response_body(binary.content, header_length=head)
    np.testing.assert_allclose(result.as_numpy("OUTPUT"), expected(bert, ids, mask), atol=1e-5)
    assert json.loads(as_json.content)["outputs"][0]["data"] == result.as_numpy("OUTPUT").ravel().tolist()
    assert server.unload("codes").status_code == 200
    assert server.http.get("/models/codes").status_code == 404
    assert server.invoke("codes", request(ids, mask)).status_code == 404


def test_two_hundred_copies_are_loaded_listed_and_answer(platform: Platform, repository: Path, bert: Any) -> None:
    server = platform.server
    names = [f"copy-{number:03}" for number in range(COPIES)]
    for name in names:
        home = server.folder(name) / "bert_model"
        (home / "1").mkdir(parents=True)
        for file in ("config.pbtxt", "1/model.pt"):
            os.link(repository / "bert_model" / file, home / file)
        assert server.load(name).status_code == 200
    assert set(names) <= set(server.names())
    ids, mask = tokens(7)
    wanted = expected(bert, ids, mask)
    for name in (names[0], names[99], names[-1]):
        (output,) = server.invoke(name, request(ids, mask)).json()["outputs"]
        np.testing.assert_allclose(np.array(output["data"], np.float32).reshape(1, LENGTH, 32), wanted, atol=1e-5)
    for name in names:
        assert server.unload(name).json()["freedBytes"] > 0
    assert not set(names) & set(server.names())
