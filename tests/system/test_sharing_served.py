"""Equal weights are kept once, through the real server: copies, fine-tunes, figures, and nobody who can write them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from container.memory.sizes import checkpoint_bytes
from tests.makers import booked_bytes, tiny_bert
from tests.server import Server, running, write_script

COPIES, TUNES, ROOM = 200, 50, 20
SIZE = {"hidden": 64, "layers": 2}
TEXT = {"inputs": "a b c d e"}
WEIGHTS = "model.safetensors"
VANDAL = """
import os

def model_fn(model_dir):
    return None

def predict_fn(data, model):
    with open(data, "r+b") as file:
        file.seek(os.path.getsize(data) // 2)
        file.write(b"\\x7f" * 10_000)
    return "done"
"""


def linked(folder: Path, original: Path) -> Path:
    """A copy of ``original`` that takes no disk."""
    folder.mkdir(parents=True)
    for file in original.iterdir():
        os.link(file, folder / file.name)
    return folder


def fine_tune(folder: Path, original: Path, seed: int) -> Path:
    """The network of ``original`` with a classifier of three labels that is nobody else's."""
    shutil.copytree(original, folder)
    head = torch.Generator().manual_seed(seed)
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(original / WEIGHTS).items()}
    tensors |= {
        "classifier.weight": torch.randn(3, SIZE["hidden"], generator=head),
        "classifier.bias": torch.zeros(3),
    }
    (folder / WEIGHTS).unlink()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    labels = {str(number): f"L{number}" for number in range(3)}
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": labels, "num_labels": 3}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def metric(server: Server, name: str, **labels: str) -> float:
    wanted = {f'{key}="{value}"' for key, value in labels.items()}
    for line in server.http.get("/metrics").text.splitlines():
        if line.startswith(f"{name}{{") and wanted <= set(line[len(name) + 1 : line.index("}")].split(",")):
            return float(line.split()[-1])
    raise AssertionError(f"no {name} {labels}")


def test_two_hundred_copies_and_fifty_fine_tunes_lie_where_twenty_would(tmp_path: Path) -> None:
    original = tiny_bert(tmp_path / "original", **SIZE)
    one = checkpoint_bytes(original)
    with running(tmp_path, BERTH_MEMORY_LIMIT=str(ROOM * one)) as server:
        tunes = [f"tune{number}" for number in range(TUNES)]
        copies = [f"copy{number}" for number in range(COPIES)]
        for number, name in enumerate(tunes):
            fine_tune(server.folder(name), original, number)
        rights = {}
        for name in (*tunes[:3], copies[0]):  # as they answer when nothing is shared: one at a time
            if name in copies:
                linked(server.folder(name), original)
            server.load(name).raise_for_status()
            rights[name] = server.invoke(name, TEXT).raise_for_status().json()
            server.unload(name).raise_for_status()
        assert len({json.dumps(right) for right in rights.values()}) == 4
        for name in (*tunes, *copies):
            if not server.folder(name).exists():
                linked(server.folder(name), original)
            server.load(name).raise_for_status()
        described = {name: server.describe(name) for name in (*tunes, *copies)}
        assert {each["tier"] for each in described.values()} == {"device"}
        for name in copies:
            assert described[name]["bytes"] == described[name]["sharedBytes"] > 0.98 * one
        for name in tunes:
            own = described[name]["bytes"] - described[name]["sharedBytes"]
            assert 3 * SIZE["hidden"] * 4 <= own < 0.05 * one
        assert metric(server, "berth_memory_bytes", tier="device", kind="used") < 2 * one
        assert metric(server, "berth_memory_bytes", tier="device", kind="over") == 0
        assert metric(server, "berth_shared_bytes", tier="device") > 0.98 * one
        assert metric(server, "berth_saved_bytes", tier="device") > (COPIES + TUNES - 2) * 0.98 * one
        assert "berth_demotions_total 0.0" in server.http.get("/metrics").text
        for name, right in rights.items():
            assert server.invoke(name, TEXT).json() == right
        answers = {json.dumps(server.invoke(name, TEXT).raise_for_status().json()) for name in tunes}
        assert len(answers) == TUNES
        for name in copies:
            assert server.invoke(name, TEXT).json() == rights["copy0"]
        maps = Path(f"/proc/{server.pid_of('engine')}/maps").read_text()
        assert WEIGHTS not in maps, "what is shared, and what is left beside it, lies in memory of our own"
        assert maps.count("memfd:berth-weights") <= 4
        freed = [server.unload(name).json()["freedBytes"] for name in (*copies, *tunes)]
        assert sum(freed) < 2 * one
        assert max(freed) == freed[-1], "the last one takes the block with it"
        assert metric(server, "berth_memory_bytes", tier="device", kind="used") == 0
        assert "memfd:berth-weights" not in Path(f"/proc/{server.pid_of('engine')}/maps").read_text()


def test_copies_that_sank_are_one_again_when_they_rise(tmp_path: Path) -> None:
    original = tiny_bert(tmp_path / "original", **SIZE)
    one = checkpoint_bytes(original)
    with running(tmp_path, BERTH_MEMORY_LIMIT=str(2 * one + one // 2)) as server:
        for name in ("a", "b", "c"):
            linked(server.folder(name), original)
            server.load(name).raise_for_status()
        right = server.invoke("a", TEXT).json()
        big = tiny_bert(server.folder("needs_nearly_all"), 1, **{**SIZE, "layers": 2 * SIZE["layers"]})
        assert 1.5 * one < checkpoint_bytes(big) < 2.5 * one
        server.load("needs_nearly_all").raise_for_status()
        assert {server.describe(name)["tier"] for name in "abc"} == {"disk"}
        for name in ("a", "b", "c", "a"):
            assert server.invoke(name, TEXT).json() == right
        assert {server.describe(name)["tier"] for name in "abc"} == {"device"}
        assert metric(server, "berth_saved_bytes", tier="device") > 1.9 * one


@pytest.mark.parametrize("device", ["cpu", "sim:1GiB@1GB/s"])
def test_copies_that_are_loaded_at_the_same_moment_are_one(tmp_path: Path, device: str) -> None:
    original = tiny_bert(tmp_path / "original", 5, **SIZE)
    one = checkpoint_bytes(original)
    names = [f"c{number}" for number in range(6)]
    room = {"BERTH_MEMORY_LIMIT": str(5 * one // 4), "BERTH_DEVICE": device}
    if device != "cpu":
        room["BERTH_HOST_MEMORY_LIMIT"] = room["BERTH_MEMORY_LIMIT"]
    with running(tmp_path, **room) as server:
        for name in names:
            shutil.copytree(original, server.folder(name))
        with ThreadPoolExecutor(len(names)) as callers:
            loaded = list(callers.map(server.load, names))
        assert {answer.status_code for answer in loaded} == {200}, [answer.text for answer in loaded]
        described = [server.describe(name) for name in names + names][len(names) :]  # the first asks wait for joins
        assert {each["tier"] for each in described} == {"device"}
        assert all(each["sharedBytes"] == each["bytes"] >= 0.98 * one for each in described)
        assert metric(server, "berth_memory_bytes", tier="device", kind="used") < 1.1 * one
        assert len({server.invoke(name, TEXT).raise_for_status().text for name in names}) == 1


@pytest.fixture(scope="module", params=["cpu", "sim:1GiB@1GB/s"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    room = {} if request.param == "cpu" else {"BERTH_HOST_MEMORY_LIMIT": "64MiB"}
    with running(tmp_path_factory.mktemp("base"), BERTH_DEVICE=request.param, **room) as started:
        engine = started.pid_of("engine")
        yield started
        assert started.pid_of("engine") == engine, "it died and was replaced"


def vandalise(server: Server, file: Path) -> None:
    """Another team's code writes into the file."""
    write_script(server.folder("vandal"), VANDAL)
    if "vandal" not in server.names():
        server.load("vandal").raise_for_status()
    assert server.invoke("vandal", str(file)).json() == "done"


def overwrite(server: Server, file: Path) -> None:
    with file.open("r+b") as open_file:
        open_file.seek(3000)
        open_file.write(b"\x7f" * 100_000)


def truncate(server: Server, file: Path) -> None:
    os.truncate(file, 0)


def remove(server: Server, file: Path) -> None:
    shutil.rmtree(file.parent)


@pytest.mark.parametrize("harm", [vandalise, overwrite, truncate, remove], ids=lambda harm: harm.__name__)
def test_nobody_can_write_into_what_is_shared(
    server: Server, tmp_path: Path, harm: Callable[[Server, Path], Any]
) -> None:
    original = tiny_bert(tmp_path / "original", 7, **SIZE)
    names = [f"{harm.__name__}{number}" for number in range(3)]
    for name in names:
        shutil.copytree(original, server.folder(name))
        server.load(name).raise_for_status()
    right = server.invoke(names[0], TEXT).json()
    for name in names:
        described = server.describe(name)
        assert described["sharedBytes"] == described["bytes"] > 0
    harm(server, server.folder(names[0]) / WEIGHTS)
    watched = server.environ["BERTH_DEVICE"] != "cpu" and harm is not remove
    for name in names:  # under a device one whose own file was changed is what its file is now, and the others are not
        assert (server.invoke(name, TEXT).json() == right) == (name != names[0] or not watched)
    assert server.unload(names[0]).status_code == 200
    for name in names[1:]:
        assert server.invoke(name, TEXT).json() == right


def test_salts_and_the_switch_keep_models_apart(server: Server, tmp_path: Path) -> None:
    original = tiny_bert(tmp_path / "original", 11, **SIZE)
    for name, salt in (("plain", ""), ("bank1", "bank"), ("bank2", "bank"), ("clinic", "clinic")):
        folder = Path(shutil.copytree(original, server.folder(name)))
        (folder / "berth.json").write_text(json.dumps({"salt": salt}))
        server.load(name).raise_for_status()
    described = {name: server.describe(name) for name in ("plain", "bank1", "bank2", "clinic")}
    assert described["clinic"]["sharedBytes"] == 0, "not even the tokenizer"
    shared = {name: each["sharedBytes"] > each["tokenizerBytes"] for name, each in described.items()}
    assert shared == {"plain": False, "bank1": True, "bank2": True, "clinic": False}
    with running(tmp_path / "apart", BERTH_SHARING="off") as apart:
        for name in ("a", "b"):
            shutil.copytree(original, apart.folder(name))
            apart.load(name).raise_for_status()
        time.sleep(0.2)
        assert [apart.describe(name)["sharedBytes"] for name in ("a", "b")] == [0, 0]
        assert metric(apart, "berth_memory_bytes", tier="device", kind="used") == 2 * booked_bytes(original)
