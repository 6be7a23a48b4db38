"""Row B: a custom container of multi-model-server. Same archives, same service, same bytes, either door.

Its image has the service (``SAGEMAKER_HANDLER`` names it), the archives have weights and ``synset.txt``; one pair of
networks at the prefix, ten copies of another in a sub-folder; a raw JPEG in, five strings out.
"""

from __future__ import annotations

import io
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from botocore.exceptions import ClientError
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification

from tests.doors.differences import DIFFERENCES
from tests.rows.stand_in import Platform, multi_model, tar

HANDLER = Path(__file__).parent / "row_b" / "model_handler.py"
LABELS = ["tabby", "siamese", "beagle", "goldfish", "espresso", "teapot", "viaduct"]
COPIES = [f"demo-subfolder/squeezenet_v1.1_{number}.tar.gz" for number in range(10)]
STRING = re.compile(r"probability=(\d\.\d{6}), class=(\w+)")


def archive(folder: Path, seed: int, width: int = 8) -> tuple[Path, ResNetForImageClassification]:
    """A folder as the row packs it: weights and the labels that the service opens by a relative name."""
    torch.manual_seed(seed)
    config = ResNetConfig(
        embedding_size=width, hidden_sizes=[width, 2 * width], depths=[1, 1], layer_type="basic", num_labels=len(LABELS)
    )
    net = ResNetForImageClassification(config).eval()
    net.save_pretrained(folder / "network")
    (folder / "synset.txt").write_text("\n".join(LABELS) + "\n")
    return folder, net


def jpeg(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def expected(net: ResNetForImageClassification, image: bytes) -> list[tuple[float, str]]:
    """The network run directly."""
    picture = Image.open(io.BytesIO(image)).convert("RGB").resize((32, 32))
    pixels = np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / 255
    with torch.no_grad():
        row = net(torch.from_numpy(pixels)[None]).logits.softmax(dim=1)[0]
    return [(float(row[at]), LABELS[int(at)]) for at in row.argsort(descending=True)[:5]]


def told(strings: list[str]) -> list[tuple[float, str]]:
    found = [STRING.fullmatch(text) for text in strings]
    return [(float(match[1]), match[2]) for match in found if match is not None]


@pytest.fixture(scope="module")
def nets() -> dict[str, ResNetForImageClassification]:
    return {}


@pytest.fixture(scope="module", params=["http", "mms"])
def row(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    nets: dict[str, ResNetForImageClassification],
) -> Iterator[tuple[str, Platform]]:
    door: str = request.param
    home = tmp_path_factory.mktemp(door)
    sources = {"resnet_18.tar.gz": 18, "resnet_152.tar.gz": 152}
    for key, seed in sources.items():
        _, nets[key] = archive(home / key, seed)
    _, nets["squeezenet"] = archive(home / "squeezenet", 1)
    archive(home / "huge", 2, width=64)
    size = sum(tensor.nbytes for tensor in nets["squeezenet"].state_dict().values())
    environ = {
        "BERTH_DOOR": door,
        "BERTH_EVICTION": "platform",
        "BERTH_SHARING": "off",
        "BERTH_MEMORY_LIMIT": str(10 * size + size // 2),
        "SAGEMAKER_HANDLER": f"{shutil.copy(HANDLER, home)}:handle",
    }
    with multi_model(home / "endpoint", **environ) as platform:
        assert platform.prefix is not None
        (platform.prefix / "demo-subfolder").mkdir()
        for key in sources:
            tar(home / key, platform.prefix / key)
        tar(home / "huge", platform.prefix / "huge.tar.gz")
        first = tar(home / "squeezenet", platform.prefix / COPIES[0])
        for key in COPIES[1:]:
            shutil.copy(first, platform.prefix / key)
        yield door, platform


def test_a_jpeg_gives_five_strings_as_the_network_run_directly(
    row: tuple[str, Platform], nets: dict[str, ResNetForImageClassification]
) -> None:
    _, platform = row
    image = jpeg()
    for key, net in (("resnet_18.tar.gz", "resnet_18.tar.gz"), (COPIES[3], "squeezenet")):
        strings = platform.ask(key, image, "application/x-image")
        assert len(strings) == 5
        for (found, label), (wanted, name) in zip(told(strings), expected(nets[net], image), strict=True):
            assert (found, label) == (pytest.approx(wanted, abs=2e-6), name)


def test_a_hundred_calls_of_random_models_while_two_of_twelve_find_no_room(
    row: tuple[str, Platform], nets: dict[str, ResNetForImageClassification]
) -> None:
    _, platform = row
    chance = random.Random(7)
    keys = ["resnet_18.tar.gz", "resnet_152.tar.gz", *COPIES]
    for key in keys:  # so that each is called, and the last two have to push others out
        platform.invoke(key, jpeg(), "application/x-image")
    tops: Counter[str] = Counter()
    wanted: Counter[str] = Counter()
    for number in range(100):
        key, image = chance.choice(keys), jpeg(number % 5)
        tops[told(json.loads(platform.invoke(key, image, "application/x-image")["Body"]))[0][1]] += 1
        wanted[expected(nets[key if key in nets else "squeezenet"], image)[0][1]] += 1
    assert tops == wanted
    log = platform.server.log()
    assert "memory.no_room" in log, "twelve models fit where ten should; the row shows nothing"
    assert len(platform.server.names()) == 10


def test_what_can_never_fit_is_the_callers_error_and_nothing_is_left_of_it(row: tuple[str, Platform]) -> None:
    door, platform = row
    with pytest.raises(ClientError) as refused:
        platform.invoke("huge.tar.gz", jpeg(), "application/x-image")
    error = refused.value.response
    assert error["Error"]["Code"] == "ModelError"
    assert error["OriginalStatusCode"] == getattr(DIFFERENCES["larger than the limit"], door)
    assert platform.endpoint.status()["archives"]["huge.tar.gz"] not in platform.server.names()  # type: ignore[index]
    assert len(told(platform.ask("resnet_18.tar.gz", jpeg(), "application/x-image"))) == 5


def test_a_body_that_is_no_image_is_the_services_own_error(row: tuple[str, Platform]) -> None:
    _, platform = row
    with pytest.raises(ClientError) as refused:
        platform.invoke("resnet_18.tar.gz", b"not a picture", "application/x-image")
    assert refused.value.response["OriginalStatusCode"] == 500
    assert "cannot identify image" in refused.value.response["Error"]["Message"]
