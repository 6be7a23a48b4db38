"""Row G: three tasks in three TorchServe archives behind one endpoint, TargetModel with a leading slash.

Each has a handler, a model-config.yaml, requirements, and a manifest as torch-model-archiver writes it; TorchServe
itself is not installed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from botocore.exceptions import ClientError

from tests.rows.stand_in import Platform, multi_model, tar

ROW = Path(__file__).parent / "row_g"
WEIGHTS = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32) / 4


class Threshold(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - 127


def pack(task: str, home: Path, archive: Path, *, requirements: str = "", inner: bool = False) -> None:
    """An archive as ``torch-model-archiver --archive-format no-archive`` leaves it, or (inner) as its tgz does."""
    folder = home / task / task if inner else home / task
    shutil.copytree(ROW / task, folder)
    shutil.copy(ROW / "model-config.yaml", folder)
    if task == "sam":
        torch.jit.save(torch.jit.script(Threshold()), str(folder / "model.pt"))
    if task == "sd":
        np.save(folder / "model.npy", WEIGHTS)
    if task == "lama":
        (folder / "labels.txt").write_text("sky\nroad\ntree\n")
    if requirements:
        (folder / "requirements.txt").write_text(requirements)
    files = {"sam": "model.pt", "sd": "model.npy", "lama": "labels.txt"}
    manifest = {
        "createdOn": "15/07/2023 01:02:03",
        "runtime": "python",
        "model": {
            "modelName": task,
            "serializedFile": files[task],
            "handler": "custom_handler.py",
            "modelVersion": "1.0",
            "configFile": "model-config.yaml",
        },
        "archiverVersion": "0.8.1",
    }
    (folder / "MAR-INF").mkdir()
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    tar(home / task, archive)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    home = tmp_path_factory.mktemp("row_g")
    with multi_model(home / "endpoint", TS_INSTALL_PY_DEP_PER_MODEL="true") as started:
        assert started.prefix is not None
        pack("sam", home, started.prefix / "sam.tar.gz", inner=True)
        pack("sd", home, started.prefix / "sd.tar.gz", requirements="numpy\n")
        pack("lama", home, started.prefix / "lama.tar.gz")
        yield started


def test_segmentation_on_the_base_class(platform: Platform) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6), dtype=np.uint8)
    body = {"image": base64.b64encode(pixels.tobytes()).decode(), "shape": pixels.shape}
    answer = platform.ask("/sam.tar.gz", json.dumps(body).encode())
    mask = np.frombuffer(base64.b64decode(answer["mask"]), dtype=np.uint8).reshape(answer["shape"])
    assert (mask == np.where(pixels > 127, 255, 0)).all()


def test_text_to_image_in_the_environment_that_its_requirements_ask_for(platform: Platform) -> None:
    answer = platform.invoke("/sd.tar.gz", b"a small harbour", "text/plain")
    seed = int.from_bytes(hashlib.sha256(b"a small harbour").digest()[:4], "little")
    noise = np.random.default_rng(seed).normal(size=4)
    wanted = np.clip(WEIGHTS @ noise * 127 + 128, 0, 255).astype(np.uint8)
    assert (answer["Body"], answer["ContentType"]) == (wanted.tobytes(), "image/x-raw")


def test_inpainting_by_a_function_that_chooses_the_status_of_its_refusal(platform: Platform) -> None:
    body = {"image": [[1.0, 2.0]], "mask": [[0, 1]]}
    assert platform.ask("/lama.tar.gz", json.dumps(body).encode()) == [[1.0, 3.0]]
    body["mask"] = [[0]]
    with pytest.raises(ClientError) as refused:
        platform.invoke("/lama.tar.gz", json.dumps(body).encode(), "application/json")
    assert refused.value.response["OriginalStatusCode"] == 422
    assert "differ in shape" in refused.value.response["Error"]["Message"]


def test_all_three_are_there_and_answer_without_the_slash_too(platform: Platform) -> None:
    for key in ("sam.tar.gz", "lama.tar.gz"):
        with pytest.raises(ClientError):
            platform.invoke(key, b"{}", "application/json")
    platform.invoke("sd.tar.gz", b"again", "text/plain")
    archives = platform.endpoint.status()["archives"]
    assert isinstance(archives, dict)
    assert sorted(archives) == ["lama.tar.gz", "sam.tar.gz", "sd.tar.gz"]
    assert sorted(archives.values()) == platform.server.names()
