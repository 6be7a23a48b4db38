"""Row F of the systems to move in from: Triton on a single-model endpoint, ResNet in JSON and in binary tensors."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.http as triton
from PIL import Image

from local_test.bucket import extract
from tests.rows.graphs import RESNET_CONFIG, TinyResNet, scripted, write_repository
from tests.rows.stand_in import Platform, multi_model, single_model
from tests.server import Server

BINARY = "application/vnd.sagemaker-triton.binary+json;json-header-size="


@pytest.fixture(scope="module")
def resnet() -> TinyResNet:
    torch.set_num_threads(1)
    return TinyResNet().eval()


@pytest.fixture(scope="module")
def archive(resnet: TinyResNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tar -C triton-serve-pt/ -czf model.tar.gz resnet``."""
    home = tmp_path_factory.mktemp("notebook")
    write_repository(home / "triton-serve-pt" / "resnet", RESNET_CONFIG, scripted(resnet))
    command = ["tar", "-C", str(home / "triton-serve-pt"), "-czf", str(home / "model.tar.gz"), "resnet"]
    subprocess.run(command, check=True)
    return home / "model.tar.gz"


@pytest.fixture(scope="module")
def platform(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    base = tmp_path_factory.mktemp("row") / "ml"
    extract(archive, base / "model")
    names = {"SAGEMAKER_TRITON_DEFAULT_MODEL_NAME": "resnet", "SAGEMAKER_TRITON_THREAD_COUNT": "8"}
    with single_model(base, **names) as started:
        yield started


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """The row's preparation of a photograph: 224 x 224, fractions, ImageNet's mean and deviation, channels first."""
    drawn = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(drawn).resize((640, 480)).save(jpeg, "JPEG")
    image = Image.open(jpeg).resize((224, 224))
    values = (np.asarray(image) / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)


def expected(resnet: TinyResNet, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = resnet(torch.from_numpy(pixels)[None]).numpy()
    return logits


def tensor(pixels: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    given = triton.InferInput("INPUT__0", [1, 3, 224, 224], "FP32")
    given.set_data_from_numpy(pixels[None], binary_data=binary)
    return given


def test_json_with_data_nested_one_level_less_than_its_shape_is_answered(
    platform: Platform, resnet: TinyResNet, pixels: np.ndarray
) -> None:
    fields = {"name": "INPUT__0", "shape": [1, 3, 224, 224], "datatype": "FP32", "data": pixels.tolist()}
    answer = platform.invoke(None, json.dumps({"inputs": [fields]}).encode(), "application/octet-stream")
    assert answer["ContentType"] == "application/json"
    reply = json.loads(answer["Body"])
    (output,) = reply.pop("outputs")
    assert reply == {"model_name": "resnet", "model_version": "1"}
    assert (output["name"], output["datatype"], output["shape"]) == ("OUTPUT__0", "FP32", [1, 1000])
    np.testing.assert_allclose([output["data"]], expected(resnet, pixels), atol=1e-5)


def test_binary_tensors_of_the_real_client_are_answered_in_kind(
    platform: Platform, resnet: TinyResNet, pixels: np.ndarray
) -> None:
    wanted = [triton.InferRequestedOutput("OUTPUT__0", binary_data=True)]
    body, size = triton.InferenceServerClient.generate_request_body([tensor(pixels)], outputs=wanted)
    answer = platform.invoke(None, body, f"{BINARY}{size}")
    assert answer["ContentType"].startswith(BINARY)
    head = int(answer["ContentType"].removeprefix(BINARY))
    result = triton.InferenceServerClient.parse_response_body(answer["Body"], header_length=head)
    np.testing.assert_allclose(result.as_numpy("OUTPUT__0"), expected(resnet, pixels), atol=1e-5)


def test_a_body_that_is_one_raw_tensor_is_answered_with_bytes(
    platform: Platform, resnet: TinyResNet, pixels: np.ndarray
) -> None:
    answer = platform.invoke(None, pixels.tobytes(), f"{BINARY}0")
    head = int(answer["ContentType"].removeprefix(BINARY))
    logits = np.frombuffer(answer["Body"][head:], np.float32)
    np.testing.assert_allclose(logits[None], expected(resnet, pixels), atol=1e-5)


def test_tritonclient_finds_the_model_by_its_folders_name_and_what_it_takes(
    platform: Platform, resnet: TinyResNet, pixels: np.ndarray
) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{platform.server.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("resnet")
    assert client.is_model_ready("resnet", "1")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "model_repository"]
    assert client.get_model_metadata("resnet") == {
        "name": "resnet",
        "versions": ["1"],
        "platform": "berth_tensors",
        "inputs": [{"name": "INPUT__0", "datatype": "FP32", "shape": [-1, 3, 224, 224]}],
        "outputs": [{"name": "OUTPUT__0", "datatype": "FP32", "shape": [-1, 1000]}],
    }
    for binary in (True, False):
        outputs = [triton.InferRequestedOutput("OUTPUT__0", binary_data=binary)]
        result = client.infer("resnet", [tensor(pixels, binary=binary)], "1", outputs, request_id="seven")
        assert result.get_response()["id"] == "seven"
        np.testing.assert_allclose(result.as_numpy("OUTPUT__0"), expected(resnet, pixels), atol=1e-5)
    client.close()


def test_requests_that_come_together_share_runs_and_each_gets_its_own_answer(
    platform: Platform, resnet: TinyResNet, pixels: np.ndarray
) -> None:
    shades = [pixels * (number + 1) / 16 for number in range(16)]

    def ask(shade: np.ndarray) -> np.ndarray:
        body, size = triton.InferenceServerClient.generate_request_body([tensor(shade.astype(np.float32))])
        answer = platform.server.http.post("/invocations", content=body, headers={"content-type": f"{BINARY}{size}"})
        head = int(answer.headers["content-type"].removeprefix(BINARY))
        found: np.ndarray = np.frombuffer(answer.content[head:], np.float32)
        return found

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, shades))
    for shade, answer in zip(shades, answers, strict=True):
        np.testing.assert_allclose(answer[None], expected(resnet, shade.astype(np.float32)), atol=1e-5)


def test_two_of_them_stand_behind_one_multi_model_endpoint(
    archive: Path, resnet: TinyResNet, pixels: np.ndarray, tmp_path: Path
) -> None:
    other = TinyResNet(seed=1).eval()
    with multi_model(tmp_path / "row") as platform:
        assert platform.prefix is not None
        shutil.copy(archive, platform.prefix / "resnet_pt_v0.tar.gz")
        write_repository(tmp_path / "resnet", RESNET_CONFIG, scripted(other))
        command = ["tar", "-C", str(tmp_path), "-czf", str(platform.prefix / "resnet_pt_v1.tar.gz"), "resnet"]
        subprocess.run(command, check=True)
        body, size = triton.InferenceServerClient.generate_request_body([tensor(pixels)])
        for target, network in (("resnet_pt_v0.tar.gz", resnet), ("/resnet_pt_v1.tar.gz", other)):
            answer = platform.invoke(target, body, f"{BINARY}{size}")
            head = int(answer["ContentType"].removeprefix(BINARY))
            logits = np.frombuffer(answer["Body"][head:], np.float32)
            np.testing.assert_allclose(logits[None], expected(network, pixels), atol=1e-5)


def test_a_default_model_name_that_is_no_folder_ends_the_start_with_what_there_is(
    archive: Path, tmp_path: Path
) -> None:
    extract(archive, tmp_path / "ml" / "model")
    names = {"SAGEMAKER_TRITON_DEFAULT_MODEL_NAME": "resnet50", "SAGEMAKER_MULTI_MODEL": ""}
    server = Server(tmp_path / "ml", **names)
    assert server.process.wait(20) != 0
    server.http.close()
    assert "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME='resnet50' is no model in" in server.log()
    assert "there are: resnet" in server.log()
