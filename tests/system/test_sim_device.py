"""Three tiers in the real server: the rehearsed device runs every line of a GPU's but the CUDA calls."""

from __future__ import annotations

import concurrent.futures
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from container.memory.reading import Source
from tests.makers import tiny_bert
from tests.server import Server, running, write_handler, write_script

MODELS = 8
ON_DEVICE = 2
IN_RAM = 4
QUESTION = {"inputs": ["a b c", "d e f g"]}

ECHO = """
from container.handler import Handler

class Echo(Handler):
    def predict(self, batch):
        return batch
"""

#: Notes each load in a file beside its folder, and counts its calls in a buffer.
COUNTS = """
import torch
from pathlib import Path

class Net(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.net = torch.nn.Linear(size, size, bias=False)
        self.net.weight.data.fill_(2)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return self.net(x).sum() + self.calls

def model_fn(model_dir):
    with (Path(model_dir).parent / "loads").open("a") as loads:
        print("loaded", file=loads)
    return Net(128)

def predict_fn(data, model):
    return model(torch.ones(128)).item()
"""
COUNTS_BYTES = 128 * 128 * 4 + 4


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The CPU server's answers of eight models."""
    base = tmp_path_factory.mktemp("cpu")
    answers = {}
    with running(base) as server:
        for number in range(MODELS):
            tiny_bert(server.folder(f"m{number}"), number)
            server.load(f"m{number}").raise_for_status()
            answers[f"m{number}"] = server.invoke(f"m{number}", QUESTION).raise_for_status().json()
    return answers


def size_of(folder: Path) -> int:
    """Return what a tiny BERT takes as a block."""
    return Source(tiny_bert(folder), "", "cpu", allow_pickle=False).layout.bytes


def booked(server: Server) -> dict[str, float]:
    """Return every number of bytes in the ledger that is not 0: "device used" and so on."""
    found = {}
    for line in server.http.get("/metrics").text.splitlines():
        match = re.match(r'berth_memory_bytes\{kind="(used|reserved|leaving)",tier="(\w+)"\} (\S+)', line)
        if match and float(match[3]):
            found[f"{match[2]} {match[1]}"] = float(match[3])
    return found


def limits(base: Path, on_device: float = ON_DEVICE, in_ram: float = IN_RAM, speed: str = "1GB") -> dict[str, str]:
    size = size_of(base / "one")
    return {
        "BERTH_DEVICE": f"sim:1GiB@{speed}/s",
        "BERTH_MEMORY_LIMIT": str(int(on_device * size)),
        "BERTH_HOST_MEMORY_LIMIT": str(int(in_ram * size)),
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Eight models registered, room for two on the device and for four in RAM."""
    with running(tmp_path, **limits(tmp_path)) as server:
        for number in range(MODELS):
            tiny_bert(server.folder(f"m{number}"), number)
            assert server.load(f"m{number}").status_code == 200, server.log()[-3000:]
        yield server


def tiers(server: Server) -> dict[str, str]:
    return {name: server.describe(name)["tier"] for name in server.names()}


def spread(server: Server) -> Counter[str]:
    """Return how many models lie on which tier: no tier over its room."""
    counts = Counter(tiers(server).values())
    assert counts["device"] <= ON_DEVICE, counts
    assert counts["host"] <= IN_RAM, counts
    return counts


def check(server: Server, expected: dict[str, Any], name: str) -> None:
    answer = server.invoke(name, QUESTION)
    assert answer.status_code == 200, answer.text
    assert answer.json() == [pytest.approx(vector, abs=1e-6) for vector in expected[name]]


def test_models_lie_on_three_tiers_and_answer_as_on_a_cpu(server: Server, expected: dict[str, Any]) -> None:
    assert spread(server) == {"device": 2, "host": 2, "disk": 4}
    for name in ("m4", "m0", "m7", "m0", *expected):
        check(server, expected, name)
        assert tiers(server)[name] == "device"
        spread(server)
    metrics = server.http.get("/metrics").text
    assert f'berth_models{{tier="host"}} {float(spread(server)["host"])}' in metrics
    size = server.describe("m7")["bytes"]
    assert booked(server)["device used"] == 2 * size
    before = booked(server)
    freed = server.unload("m7").json()["freedBytes"]
    assert freed == sum(before.values()) - sum(booked(server).values())
    assert freed in (size, 2 * size), "its place on the device and, if it still had one, its copy in RAM"
    on_disk = next(name for name, tier in tiers(server).items() if tier == "disk")
    assert server.unload(on_disk).json()["freedBytes"] == 0


def test_random_sinks_and_rises_under_load_change_no_answer(server: Server, expected: dict[str, Any]) -> None:
    order = [f"m{number % MODELS}" for number in range(200)]
    random.Random(3).shuffle(order)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(check, server, expected, name) for name in order]:
            done.result()
    counts = spread(server)
    size = server.describe("m6")["bytes"]
    in_ram = booked(server)["host used"]
    assert booked(server) == {"device used": counts["device"] * size, "host used": in_ram}
    assert counts["host"] * size <= in_ram <= IN_RAM * size


def test_fifty_sinks_and_rises_one_by_one_are_equal(server: Server, expected: dict[str, Any]) -> None:
    generator = random.Random(5)
    for _ in range(50):
        check(server, expected, f"m{generator.randrange(MODELS)}")


def test_a_killed_engine_comes_back_with_every_model_on_disk(server: Server, expected: dict[str, Any]) -> None:
    os.kill(server.pid_of("engine"), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if server.invoke("m3", QUESTION).status_code == 200:
                break
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    for name in expected:
        check(server, expected, name)
    assert spread(server)["device"] == 2


def test_what_is_in_ram_answers_though_its_files_are_gone(server: Server, expected: dict[str, Any]) -> None:
    name = next(name for name, tier in tiers(server).items() if tier == "host")
    (server.folder(name) / "model.safetensors").unlink()
    check(server, expected, name)
    assert tiers(server)[name] == "device"


def test_new_weights_answer_the_next_request_and_those_who_shared_the_old_ones_keep_them(
    server: Server, expected: dict[str, Any], tmp_path: Path
) -> None:
    """Wherever the model lies; a file replaced, and one written over in place."""
    tiny_bert(server.folder("twin"), 7)
    server.load("twin").raise_for_status()
    right = {"m7": expected["m7"], "twin": expected["m7"]}
    for tier, seed in (("device", 5), ("host", 4)):
        check(server, right, "m7")
        while tiers(server)["m7"] != tier:
            for other in ("m1", "m2"):
                check(server, expected, other)
        file = server.folder("m7") / "model.safetensors"
        raw = (tiny_bert(tmp_path / f"seed{seed}", seed) / "model.safetensors").read_bytes()
        if tier == "device":
            file.with_suffix(".new").write_bytes(raw)
            file.with_suffix(".new").rename(file)
        else:
            with file.open("r+b") as open_file:
                open_file.write(raw)
        right["m7"] = expected[f"m{seed}"]
        for name in ("m7", "m7", "twin"):
            check(server, right, name)
    spread(server)


def test_weights_that_broke_are_told_and_mended_ones_answer(server: Server, expected: dict[str, Any]) -> None:
    file = server.folder("m7") / "model.safetensors"
    check(server, expected, "m7")
    raw = file.read_bytes()
    os.truncate(file, 1000)
    refused = server.invoke("m7", QUESTION)
    assert (refused.status_code, refused.json()["reason"]) == (400, "model.archive")
    assert server.describe("m7")["tier"] == "disk"
    file.write_bytes(raw)
    check(server, expected, "m7")


def test_copies_are_one_block_on_both_tiers(tmp_path: Path) -> None:
    with running(tmp_path, **limits(tmp_path, 1.2, 1.2)) as server:
        for number in range(4):
            tiny_bert(server.folder(f"c{number}"), 0)
            server.load(f"c{number}").raise_for_status()
        assert set(tiers(server).values()) == {"device"}
        described = server.describe("c2")
        assert described["sharedBytes"] == described["bytes"]
        for number in range(3):
            server.unload(f"c{number}").raise_for_status()
        assert server.invoke("c3", QUESTION).status_code == 200


def test_a_model_larger_than_the_device_is_refused_and_one_larger_than_ram_passes_through(tmp_path: Path) -> None:
    with running(tmp_path, **limits(tmp_path, 1.5, 0.5)) as server:
        tiny_bert(server.folder("big"), 1, hidden=64)
        refused = server.load("big")
        assert (refused.status_code, refused.json()["reason"]) == (400, "memory.larger_than_limit")
        for number in range(2):
            tiny_bert(server.folder(f"p{number}"), number)
            server.load(f"p{number}").raise_for_status()
        assert tiers(server) == {"p0": "disk", "p1": "device"}
        assert server.invoke("p0", QUESTION).status_code == 200
        assert tiers(server) == {"p0": "device", "p1": "disk"}


def test_a_load_that_fails_leaves_no_byte_on_any_tier(tmp_path: Path) -> None:
    with running(tmp_path, **limits(tmp_path)) as server:
        folder = tiny_bert(server.folder("bad"), 1)
        vocabulary = (folder / "vocab.txt").rename(folder / "kept.txt")
        assert server.load("bad").status_code == 400
        assert server.invoke("bad", QUESTION).status_code == 404
        assert booked(server) == {}
        vocabulary.rename(folder / "vocab.txt")
        assert server.load("bad").status_code == 200, server.log()[-2000:]
        assert booked(server).keys() == {"device used", "host used"}
        server.unload("bad").raise_for_status()
        assert booked(server) == {}


def test_where_the_platform_evicts_nothing_sinks_by_itself(tmp_path: Path) -> None:
    with running(tmp_path, **limits(tmp_path, 1.5, 1.5), BERTH_EVICTION="platform") as server:
        for name in "ab":
            tiny_bert(server.folder(name), ord(name))
        server.load("a").raise_for_status()
        refused = server.load("b")
        assert (refused.status_code, refused.json()["reason"]) == (507, "memory.no_room")
        server.unload("a").raise_for_status()
        assert booked(server) == {}
        server.load("b").raise_for_status()
        assert server.invoke("b", QUESTION).status_code == 200


def test_authors_models_share_the_room_with_blocks(tmp_path: Path) -> None:
    with running(tmp_path, **limits(tmp_path, 1.5, 4)) as server:
        tiny_bert(server.folder("bert"), 1)
        write_handler(server.folder("echo"), ECHO)
        for name in ("bert", "echo"):
            server.load(name).raise_for_status()
        before = server.invoke("bert", QUESTION).json()
        assert server.invoke("echo", [1]).json() == [1]
        assert server.invoke("bert", QUESTION).json() == before


def test_authors_modules_are_moved_and_their_code_loads_once(tmp_path: Path) -> None:
    """Room for one on the device: each call lowers one model and lifts the other."""
    room = {"BERTH_MEMORY_LIMIT": str(COUNTS_BYTES * 3 // 2), "BERTH_HOST_MEMORY_LIMIT": str(COUNTS_BYTES * 3)}
    with running(tmp_path, BERTH_DEVICE="sim:1GiB@1GB/s", **room) as server:
        files = [server.folder(name).parent / "loads" for name in "ab"]
        for name in "ab":
            os.utime(write_script(server.folder(name), COUNTS) / "code" / "inference.py", (1e9, 1e9))
            server.load(name).raise_for_status()
        for call in range(1, 11):
            for name, other in ("ab", "ba"):
                assert server.invoke(name, 0).raise_for_status().json() == 2 * 128 * 128 + call
                assert tiers(server) == {name: "device", other: "host"}
                assert booked(server) == {"device used": COUNTS_BYTES, "host used": 2 * COUNTS_BYTES}
        assert [file.read_text() for file in files] == ["loaded\n"] * 2
        os.kill(server.pid_of("guests"), signal.SIGKILL)
        assert server.invoke("a", 0).raise_for_status().json() == 2 * 128 * 128 + 1, "it went with its process"
        assert booked(server) == {"device used": COUNTS_BYTES, "host used": COUNTS_BYTES}
        assert server.unload("b").json()["freedBytes"] == 0
        assert server.unload("a").json()["freedBytes"] == 2 * COUNTS_BYTES
        assert booked(server) == {}


def test_models_of_all_sizes_come_and_go_without_one_wrong_answer(tmp_path: Path) -> None:
    """Holes of every size, copies among them, loads and unloads meanwhile; in the end all bytes are back."""
    shapes = [{"hidden": 32}, {"hidden": 64}, {"hidden": 32, "layers": 5}, {"hidden": 96, "layers": 1}]
    with running(tmp_path, **limits(tmp_path, 12, 20, "20MB")) as server:
        right = {}
        for number in range(16):
            name = f"s{number}"
            tiny_bert(server.folder(name), number if number % 4 else 0, **shapes[number % 4])
            assert server.load(name).status_code == 200, server.log()[-3000:]
            right[name] = server.invoke(name, QUESTION).raise_for_status().json()

        def play(seed: int) -> None:
            generator = random.Random(seed)
            own = f"own{seed}"
            tiny_bert(server.folder(own), seed, **shapes[seed % 4])
            with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as http:
                for step in range(40):
                    name = f"s{generator.randrange(16)}"
                    answer = http.post(f"/models/{name}/invoke", json=QUESTION)
                    assert answer.status_code == 200, answer.text
                    assert answer.json() == [pytest.approx(vector, abs=1e-6) for vector in right[name]], (seed, step)
                    if step % 10 == 5:
                        body = {"model_name": own, "url": str(server.folder(own))}
                        assert http.post("/models", json=body).status_code == 200
                        assert http.post(f"/models/{own}/invoke", json=QUESTION).status_code == 200
                        assert http.delete(f"/models/{own}").status_code == 200

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            for done in [pool.submit(play, seed) for seed in range(6)]:
                done.result()
        for name in right:
            server.unload(name).raise_for_status()
        assert booked(server) == {}
        bad = [line for line in server.log_lines() if line["level"] == "error"]
        assert bad == []
        assert "in one piece on the device tier" in server.log(), "holes were too small, and neighbours sank"


def test_others_answer_while_one_rises(tmp_path: Path) -> None:
    """Room for all; a copy takes half a second or more, and is nobody's wait but its own model's."""
    with running(tmp_path, BERTH_DEVICE="sim:1GiB@200KB/s") as server:
        weights = tiny_bert(server.folder("slow"), 1) / "model.safetensors"
        tiny_bert(server.folder("quick"), 2)
        for name in ("slow", "quick"):
            server.load(name).raise_for_status()
        os.utime(weights)  # it has to come up anew on its next call
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            rising = pool.submit(server.invoke, "slow", QUESTION)
            answered = 0
            while not rising.done():
                server.invoke("quick", QUESTION).raise_for_status()
                answered += not rising.done()
            assert rising.result().status_code == 200
        assert answered > 1


def test_a_rise_takes_the_time_of_its_bytes(tmp_path: Path) -> None:
    """Room for one, so each call rises: at a tenth of the bandwidth it takes longer, by about the bytes' time."""
    took = {}
    size = size_of(tmp_path / "one")
    for speed in ("1MB", "100MB"):
        with running(tmp_path / speed, **limits(tmp_path, 1.2, 4, speed)) as server:
            for name in ("a", "b"):
                tiny_bert(server.folder(name), ord(name))
                server.load(name).raise_for_status()
            began = time.monotonic()
            for _ in range(5):
                for name in ("a", "b"):
                    server.invoke(name, QUESTION).raise_for_status()
            took[speed] = (time.monotonic() - began) / 10
    assert took["1MB"] >= size / 1e6, "never faster than the bytes"
    print(f"a rise of {size} bytes: {took['1MB'] * 1e3:.1f} ms at 1 MB/s, {took['100MB'] * 1e3:.1f} ms at 100 MB/s")
