"""Files change under a model that is loaded: the answers are the new files', or a clear error; never wrong ones."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from container.memory.sizes import checkpoint_bytes
from tests.handlers.models import gpt2
from tests.makers import tiny_bert
from tests.server import Server, running, write_script

TEXT = {"inputs": "a b c d e"}
WEIGHTS = "model.safetensors"
ECHO = """
def model_fn(model_dir):
    return None

def predict_fn(data, model):
    return {"echoed": data}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("base"), BERTH_SHARING="off") as started:
        engine = started.pid_of("engine")
        yield started
        assert started.pid_of("engine") == engine, "it died and was replaced"


def other_weights(folder: Path, seed: int, tmp: Path) -> bytes:
    """The weight file of another tiny BERT."""
    return (tiny_bert(tmp / f"seed{seed}", seed) / WEIGHTS).read_bytes()


def wanted(server: Server, seed: int) -> Any:
    """What the tiny BERT of ``seed`` answers, by a model of its own."""
    name = f"reference{seed}"
    if name not in server.names():
        tiny_bert(server.folder(name), seed)
        server.load(name).raise_for_status()
    return pytest.approx(server.invoke(name, TEXT).raise_for_status().json(), abs=1e-6)


def overwrite(file: Path, raw: bytes) -> None:
    with file.open("r+b") as open_file:
        open_file.write(raw)


def replace(file: Path, raw: bytes) -> None:
    beside = file.with_suffix(".new")
    beside.write_bytes(raw)
    beside.rename(file)


def remove_and_write(file: Path, raw: bytes) -> None:
    file.unlink()
    file.write_bytes(raw)


def same(vectors: list[list[float]], others: list[list[float]]) -> bool:
    return all(vector == pytest.approx(other, abs=1e-4) for vector, other in zip(vectors, others, strict=True))


WRITES = (overwrite, replace, remove_and_write, Path.write_bytes)


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_new_weights_answer_the_next_request(
    server: Server, tmp_path: Path, write: Callable[[Path, bytes], Any]
) -> None:
    name = f"new-{write.__name__}"
    file = tiny_bert(server.folder(name), 1) / WEIGHTS
    server.load(name).raise_for_status()
    assert server.invoke(name, TEXT).json() == wanted(server, 1)
    write(file, other_weights(file.parent, 2, tmp_path))
    assert server.invoke(name, TEXT).json() == wanted(server, 2)
    assert server.invoke(name, TEXT).json() == wanted(server, 2)


def test_files_that_were_only_touched_answer_as_before(server: Server) -> None:
    file = tiny_bert(server.folder("touched"), 1) / WEIGHTS
    server.load("touched").raise_for_status()
    os.utime(file)
    assert server.invoke("touched", TEXT).json() == wanted(server, 1)


def test_an_archive_that_became_another_is_described_anew(server: Server) -> None:
    folder = tiny_bert(server.folder("other"), 1)
    server.load("other").raise_for_status()
    assert len(server.invoke("other", TEXT).json()) == 32
    before = server.describe("other")["bytes"]
    shutil.rmtree(folder)
    tiny_bert(folder, 1, hidden=64)
    assert len(server.invoke("other", TEXT).json()) == 64
    assert server.describe("other")["bytes"] > before
    shutil.rmtree(folder)
    write_script(folder, ECHO)
    assert server.invoke("other", TEXT).json() == {"echoed": TEXT}
    shutil.rmtree(folder)
    tiny_bert(folder, 1)
    server.invoke("other", TEXT)  # authors' code is not watched: what it has in memory answers until it sinks
    assert server.unload("other").status_code == 200


def other_words(folder: Path) -> None:
    words = (folder / "vocab.txt").read_text()
    (folder / "vocab.txt").write_text(words.replace("\na\n", "\n_\n").replace("\nb\n", "\na\n").replace("_", "b"))


def other_config(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("1e-12", "1e-01"))


def other_recipe(folder: Path) -> None:
    modules = [{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Normalize"}]
    (folder / "modules.json").write_text(json.dumps(modules))


def other_tensors(folder: Path) -> None:
    tiny_bert(folder, 2)


@pytest.mark.parametrize(
    "change", [other_words, other_config, other_recipe, other_tensors], ids=lambda change: change.__name__
)
def test_what_was_changed_under_a_sunk_model_answers_when_it_rises(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    one = checkpoint_bytes(tiny_bert(tmp_path / "one"))
    with running(tmp_path, BERTH_SHARING="off", BERTH_MEMORY_LIMIT=str(one + one // 2)) as server:
        folder = tiny_bert(server.folder("sunk"), 1)
        tiny_bert(server.folder("neighbour"), 3)
        for name in ("sunk", "neighbour"):
            server.load(name).raise_for_status()
        for _ in range(2):  # down and up again without a change, as it was
            old = server.invoke("sunk", TEXT).raise_for_status().json()
            server.invoke("neighbour", TEXT).raise_for_status()
        assert server.describe("sunk")["tier"] == "disk"
        change(folder)
        answer = server.invoke("sunk", TEXT).raise_for_status().json()
        shutil.copytree(folder, server.folder("reference"), dirs_exist_ok=True)
        server.load("reference").raise_for_status()
        assert answer == server.invoke("reference", TEXT).raise_for_status().json()
        assert answer != old


def test_a_link_that_leads_to_another_version_is_followed_when_its_model_rises(tmp_path: Path) -> None:
    one = checkpoint_bytes(tiny_bert(tmp_path / "one"))
    with running(tmp_path, BERTH_SHARING="off", BERTH_MEMORY_LIMIT=str(one + one // 2)) as server:
        versions = [tiny_bert(server.folder(f"v{seed}"), seed) for seed in (1, 2)]
        link = versions[0].parent.with_name("current")
        link.symlink_to(versions[0].parent)
        tiny_bert(server.folder("neighbour"), 3)
        for name in ("current", "neighbour"):
            server.load(name).raise_for_status()
        for _ in range(2):
            server.invoke("current", TEXT).raise_for_status()
            server.invoke("neighbour", TEXT).raise_for_status()
        link.unlink()
        link.symlink_to(versions[1].parent)
        shutil.rmtree(versions[0])
        answer = server.invoke("current", TEXT).raise_for_status().json()
        server.load("v2").raise_for_status()
        assert answer == server.invoke("v2", TEXT).raise_for_status().json()


def broken(file: Path) -> None:
    overwrite(file, b"\xff" * 64)


def truncated(file: Path) -> None:
    os.truncate(file, 1000)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def grown(file: Path) -> None:
    with file.open("ab") as open_file:
        open_file.write(b"more")


def removed(file: Path) -> None:
    file.unlink()


def folder_removed(file: Path) -> None:
    shutil.rmtree(file.parent)


@pytest.mark.parametrize(
    ("harm", "status", "reason"),
    [
        (broken, 400, "model.archive"),
        (truncated, 400, "model.archive"),
        (emptied, 400, "model.archive"),
        (grown, 400, "model.archive"),
        (removed, 400, "model.archive"),
        (folder_removed, 404, "model.missing"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_broken_is_told_and_answers_again_once_mended(
    server: Server, harm: Callable[[Path], None], status: int, reason: str
) -> None:
    name = f"harmed-{harm.__name__}"
    file = tiny_bert(server.folder(name), 1) / WEIGHTS
    server.load(name).raise_for_status()
    assert server.invoke(name, TEXT).json() == wanted(server, 1)
    harm(file)
    for _ in range(2):
        answer = server.invoke(name, TEXT)
        assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text
        described = server.describe(name)
        assert (described["state"], described["tier"]) == ("ready", "disk")
    shutil.rmtree(file.parent, ignore_errors=True)
    tiny_bert(file.parent, 3)
    assert server.invoke(name, TEXT).json() == wanted(server, 3)
    assert server.describe(name)["tier"] == "device"


def test_a_file_that_is_cut_while_a_long_answer_grows_costs_that_answer_only(server: Server) -> None:
    """The check before the run was long ago; hundreds of steps read the weights after it."""
    folder = gpt2(server.folder("grows"), n_positions=1024)
    server.load("grows").raise_for_status()
    right = wanted(server, 1)
    long = {"inputs": "the ship", "parameters": {"max_new_tokens": 1000}}
    with ThreadPoolExecutor(1) as caller:
        asked = caller.submit(server.invoke, "grows", long)
        deadline = time.monotonic() + 30
        while not server.describe("grows").get("cacheBytes") and time.monotonic() < deadline:
            time.sleep(0.002)
        os.truncate(folder / WEIGHTS, 5000)
        answer = asked.result()
    assert (answer.status_code, answer.json()["reason"]) == (400, "model.archive"), answer.text
    assert server.invoke("reference1", TEXT).json() == right
    shutil.rmtree(folder)
    gpt2(folder, n_positions=1024)
    assert server.invoke("grows", {"inputs": "the ship"}).status_code == 200


def test_nothing_wrong_is_answered_while_files_change_under_load(tmp_path: Path) -> None:
    """Callers never stop while weights are changed in every way: each answer comes from one file or the other."""
    with running(tmp_path) as server:
        size = {"hidden": 256, "layers": 6}
        raws = [(tiny_bert(tmp_path / f"seed{seed}", seed, **size) / WEIGHTS).read_bytes() for seed in (1, 2)]
        file = tiny_bert(server.folder("moving"), 1, **size) / WEIGHTS
        body = {"inputs": ["a b c d e f g h i j k l m n o p " * 3] * 4}
        rights = []
        for seed in (1, 2):
            tiny_bert(server.folder(f"right{seed}"), seed, **size)
            server.load(f"right{seed}").raise_for_status()
            rights.append(server.invoke(f"right{seed}", body).json())
            server.unload(f"right{seed}").raise_for_status()
        server.load("moving").raise_for_status()
        engine = server.pid_of("engine")
        told: Counter[Any] = Counter()
        done = threading.Event()

        def call() -> None:
            with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as http:
                while not done.is_set():
                    answer = http.post("/models/moving/invoke", json=body)
                    if answer.status_code == 200:
                        close = [same(answer.json(), right) for right in rights]
                        told[close.index(True) if any(close) else "wrong"] += 1
                    else:
                        told[answer.status_code, answer.json()["reason"]] += 1

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        for turn in range(12):
            raw = raws[turn % 2]
            (Path.write_bytes if turn % 4 < 2 else replace)(file, raw)  # write_bytes cuts the file to nothing first
            time.sleep(0.15)
            os.truncate(file, len(raw) // 3)
            time.sleep(0.05)
        file.write_bytes(raws[0])
        time.sleep(0.3)
        done.set()
        for caller in callers:
            caller.join()
        assert "wrong" not in told, told
        assert told[0], told
        assert told[1], told
        assert {key for key in told if isinstance(key, tuple)} <= {(400, "model.archive")}, told
        assert server.pid_of("engine") == engine, server.log()[-3000:]
        assert same(server.invoke("moving", body).json(), rights[0])
        assert "was cut while it was read" in server.log()
