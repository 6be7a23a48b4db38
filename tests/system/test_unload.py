"""DELETE gives everything back before it answers: bytes, mappings, descriptors, threads; however often."""

from __future__ import annotations

import concurrent.futures
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from container.memory.probe import process_bytes
from container.memory.reading import Source
from tests.makers import booked_bytes, tiny_bert
from tests.server import Server, running, write_handler

TEXT = {"inputs": "a b c"}
CYCLES = 1000
SLOW = """
import time
from container.handler import Handler

class Slow(Handler):
    def load(self, model_dir, context):
        self.weights_bytes = 1000

    def predict(self, batch):
        time.sleep(1.0)
        return batch
"""
MAPS_ITS_WEIGHTS = """
from safetensors.torch import load_file
from container.handler import Handler

class Maps(Handler):
    def load(self, model_dir, context):
        self.weights = load_file(model_dir / "model.safetensors")
        self.itself = self.load  # a circle, as authors make them

    def predict(self, batch):
        return [float(sum(tensor.sum() for tensor in self.weights.values())) for _ in batch]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("base")) as started:
        yield started


def maps(server: Server, part: str = "engine") -> str:
    return Path(f"/proc/{server.pid_of(part)}/maps").read_text()


def booked(server: Server) -> set[float]:
    """The bytes that anybody has on any tier."""
    kinds = ('kind="used"', 'kind="reserved"', 'kind="leaving"')
    lines = server.http.get("/metrics").text.splitlines()
    return {
        float(line.split()[-1])
        for line in lines
        if line.startswith("berth_memory_bytes{") and any(k in line for k in kinds)
    }


def test_the_answer_says_how_many_bytes_are_back_and_nothing_is_mapped_any_more(server: Server) -> None:
    folder = tiny_bert(server.folder("one"))
    server.load("one").raise_for_status()
    server.invoke("one", TEXT).raise_for_status()
    assert str(folder) in maps(server)
    gone = server.unload("one")
    assert str(folder) not in maps(server)
    assert gone.json() == {"status": 'Model "one" unregistered', "freedBytes": booked_bytes(folder)}


def test_no_process_maps_what_an_archives_code_had_mapped_when_delete_answers(server: Server) -> None:
    folder = write_handler(tiny_bert(server.folder("maps")), MAPS_ITS_WEIGHTS)
    server.load("maps").raise_for_status()
    server.invoke("maps", 1).raise_for_status()
    assert str(folder) in maps(server, "guests"), "nothing was mapped, so that nothing is tried"
    server.unload("maps").raise_for_status()
    assert str(folder) not in maps(server, "guests") + maps(server)


def test_nothing_of_a_folder_is_mapped_on_a_simulated_device_when_delete_answers(tmp_path: Path) -> None:
    """On the device or sunk to RAM, read as it is stored or converted, of our own code or of an archive's."""
    size = Source(tiny_bert(tmp_path / "a"), "", "cpu", allow_pickle=False).layout.bytes
    limits = {"BERTH_MEMORY_LIMIT": str(9 * size // 4), "BERTH_HOST_MEMORY_LIMIT": str(4 * size)}
    with running(tmp_path, BERTH_DEVICE="sim:256MiB@1GB/s", **limits) as server:
        asked = {"stays": TEXT, "converts": TEXT, "sinks": TEXT, "maps": 1}
        for seed, (name, body) in enumerate(asked.items()):
            folder = tiny_bert(server.folder(name), seed)
            if name == "maps":
                write_handler(folder, MAPS_ITS_WEIGHTS)
            if name == "converts":
                (folder / "berth.json").write_text('{"dtype": "float16"}')
            server.load(name).raise_for_status()
            server.invoke(name, body).raise_for_status()
        assert str(server.folder("maps")) in maps(server, "guests"), "nothing was mapped, so that nothing is tried"
        assert {server.describe(name)["tier"] for name in asked} == {"device", "host"}
        for name in asked:
            server.unload(name).raise_for_status()
            assert str(server.folder(name)) not in maps(server, "guests") + maps(server)


def test_what_others_share_is_not_said_to_be_free_until_the_last_is_gone(server: Server, tmp_path: Path) -> None:
    original = tiny_bert(tmp_path / "original", hidden=64)
    names = ["twin1", "twin2"]
    for name in names:
        shutil.copytree(original, server.folder(name))
        server.load(name).raise_for_status()
    size = server.describe("twin1")["bytes"]
    deadline = time.monotonic() + 60
    while server.describe("twin1")["sharedBytes"] != size and time.monotonic() < deadline:
        time.sleep(0.02)  # equal weights are compared and joined beside the road
    assert server.describe("twin1")["sharedBytes"] == size
    assert server.unload("twin1").json()["freedBytes"] == 0
    assert server.unload("twin2").json()["freedBytes"] == size
    assert not any(str(server.folder(name)) in maps(server) for name in names)


def test_a_folder_may_be_removed_as_soon_as_the_answer_is_there_while_others_compare(server: Server) -> None:
    """Copies are unloaded while they are being compared with each other."""
    names = [f"fast{number}" for number in range(6)]
    original = tiny_bert(server.base / "original", hidden=256, layers=8)
    for name in names:
        shutil.copytree(original, server.folder(name))

    def load_and_unload(name: str) -> bool:
        server.load(name).raise_for_status()
        server.unload(name).raise_for_status()
        return str(server.folder(name)) in maps(server)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert not any(pool.map(load_and_unload, names))


def test_requests_in_flight_are_answered_before_the_bytes_go(server: Server) -> None:
    write_handler(server.folder("slow"), SLOW)
    server.load("slow").raise_for_status()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running_one = pool.submit(server.invoke, "slow", 7)
        time.sleep(0.3)
        assert server.unload("slow").json()["freedBytes"] == 1000
        assert running_one.result().json() == 7
    assert server.invoke("slow", 7).status_code == 404


@pytest.mark.parametrize("device", ["cpu", "sim:64MiB@1GB/s"])
def test_a_thousand_cycles_leave_nothing_behind(tmp_path: Path, device: str) -> None:
    """A rehearsed device's memory is the process's; what stayed on it, or in the RAM under it, keeps the fourth out."""
    limits = {} if device == "cpu" else {"BERTH_HOST_MEMORY_LIMIT": "1MiB", "BERTH_MEMORY_LIMIT": "1MiB"}
    with running(tmp_path, BERTH_DEVICE=device, **limits) as server:
        folders = [tiny_bert(server.folder(f"m{number}"), number % 5, hidden=64) for number in range(10)]
        engine = psutil.Process(server.pid_of("engine"))

        def cycle(number: int) -> None:
            name = folders[number % 10].parent.name
            server.load(name).raise_for_status()
            server.invoke(name, TEXT).raise_for_status()
            server.unload(name).raise_for_status()

        def state() -> tuple[int, int, int]:
            return engine.num_fds(), engine.num_threads(), len(engine.memory_maps(grouped=False))

        for number in range(60):
            cycle(number)
        before, nbytes = (
            state(),
            process_bytes(engine.pid),
        )  # mapped files beside: who else maps them changes their share
        for number in range(CYCLES):
            cycle(number)
        assert state()[0] == before[0]
        assert state()[1] - before[1] <= 4, "a pool may start the rest of its threads at any time, but no more"
        assert abs(state()[2] - before[2]) <= 8, "the allocator's, not the models'"
        assert process_bytes(engine.pid) - nbytes < 1 << 20
        assert booked(server) == {0.0}
        assert not any(str(folder) in maps(server) for folder in folders)
