"""Memory refused and memory run out of, at load and at invoke: the right code, the bytes back, the others unharmed."""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from container.memory import probe
from tests.makers import booked_bytes, tiny_bert, vast_bert
from tests.memory_errors import CODES, TABLE
from tests.server import Server, running, write_handler, write_script

TEXT = {"inputs": "a b c"}
CASES = [pytest.param(name, real, id=name) for name, _, real in TABLE]

RAISES = f"""
import errno
from pathlib import Path

CODES = {CODES!r}

def model_fn(model_dir):
    at_load = Path(model_dir) / "at_load.txt"
    if at_load.exists():
        exec(CODES[at_load.read_text()], {{"errno": errno}})

def predict_fn(data, model):
    if data in CODES:
        exec(CODES[data], {{"errno": errno}})
    return data
"""
#: A model of as many bytes as its berth.json says, which sleeps for as long as it is asked to.
BALLAST = """
import time
from container.handler import Handler

class Ballast(Handler):
    def load(self, model_dir, context):
        time.sleep(context.options.get("load_s", 0))
        self.weights_bytes = context.options["bytes"]

    def predict(self, batch):
        for seconds in batch:
            time.sleep(seconds)
        return batch
"""


def ballast(server: Server, name: str, nbytes: int, load_s: float = 0, **berth: Any) -> str:
    folder = write_handler(server.folder(name), BALLAST, options={"bytes": nbytes, "load_s": load_s}, **berth)
    (folder / "weights.pt").write_bytes(bytes(nbytes))  # so that it is known before it is loaded
    return name


def booked(server: Server) -> float:
    """Bytes of the device tier that are anybody's, beside what the built-in model has."""
    total = 0.0
    for line in server.http.get("/metrics").text.splitlines():
        if "berth_memory_bytes{" in line and any(f'"{kind}"' in line for kind in ("used", "reserved", "leaving")):
            total += float(line.split()[-1])
    if "bert" in server.names() and (bert := server.describe("bert"))["tier"] == "device":
        total -= bert["bytes"]
    return total


def refusal(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["reason"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("base")) as started:
        tiny_bert(started.folder("bert"))
        started.load("bert").raise_for_status()
        write_script(started.folder("raises"), RAISES)
        started.load("raises").raise_for_status()
        pids = {part: started.pid_of(part) for part in ("engine", "guests")}
        yield started
        assert {part: started.pid_of(part) for part in pids} == pids


@pytest.mark.parametrize(("name", "real"), CASES)
def test_at_load_only_a_real_one_is_507_and_nothing_is_left(server: Server, name: str, real: bool) -> None:
    before = booked(server), server.names()
    folder = write_script(server.folder(f"load-{name}".replace(" ", "-").replace(",", "")), RAISES)
    model = folder.parent.name
    (folder / "at_load.txt").write_text(name)
    refused = server.load(model)
    assert refusal(refused) == ((507, "memory.exhausted") if real else (500, "model.load_failed")), refused.text
    assert server.invoke(model, "x").status_code == 404
    assert (booked(server), server.names()) == before
    (folder / "at_load.txt").unlink()
    assert server.load(model).status_code == 200, "the next load of the same name succeeds"
    assert server.invoke(model, "x").json() == "x"
    assert server.unload(model).status_code == 200


@pytest.mark.parametrize(("name", "real"), CASES)
def test_at_invoke_only_a_real_one_is_507_and_the_model_goes_on(server: Server, name: str, real: bool) -> None:
    refused = server.invoke("raises", name)
    assert refusal(refused) == ((507, "memory.exhausted") if real else (500, "model.failed")), refused.text
    assert server.invoke("raises", "fine").json() == "fine"
    assert server.invoke("bert", TEXT).status_code == 200


FAILS_ONCE = """
class State:
    calls = 0

def model_fn(model_dir):
    return State()

def predict_fn(data, model):
    model.calls += 1
    if model.calls == 1:
        raise MemoryError()
    return model.calls
"""
FAILS_IN_BATCHES_OF_MORE_THAN_FOUR = """
from container.handler import Handler

class Greedy(Handler):
    def load(self, model_dir, context):
        self.sizes = []

    def predict(self, batch):
        self.sizes.append(len(batch))
        if len(batch) > 4:
            raise MemoryError()
        return [self.sizes for _ in batch]
"""


def test_idle_models_sink_for_the_second_try_and_answer_again(server: Server) -> None:
    write_script(server.folder("once"), FAILS_ONCE)
    server.load("once").raise_for_status()
    right = server.invoke("bert", TEXT).json()
    assert server.describe("bert")["tier"] == "device"
    assert server.invoke("once", "x").json() == 2
    assert server.describe("bert")["tier"] == "disk"
    assert server.invoke("bert", TEXT).json() == right


def test_a_model_that_always_runs_out_does_not_keep_the_others_away(server: Server) -> None:
    write_script(server.folder("always"), "def model_fn(d): ...\ndef predict_fn(data, model): raise MemoryError()")
    server.load("always").raise_for_status()
    assert refusal(server.invoke("always", "x")) == (507, "memory.exhausted")
    server.invoke("bert", TEXT).raise_for_status()
    for _ in range(5):
        assert refusal(server.invoke("always", "x")) == (507, "memory.exhausted")
        assert server.describe("bert")["tier"] == "device"


def test_batches_are_halved_for_good(server: Server) -> None:
    batch = {"max_size": 8, "max_delay_ms": 300}
    write_handler(server.folder("greedy"), FAILS_IN_BATCHES_OF_MORE_THAN_FOUR, batch=batch)
    server.load("greedy").raise_for_status()
    for _ in range(2):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda number: server.invoke("greedy", number), range(8)))
        assert [answer.status_code for answer in answers] == [200] * 8, [answer.text for answer in answers]
    answer = server.invoke("greedy", 0)
    assert answer.status_code == 200, answer.text
    sizes = answer.json()
    assert sizes[0] > 4
    assert max(sizes[1:]) <= sizes[0] // 2


def test_larger_than_the_limit_is_400_with_the_arithmetic(tmp_path: Path) -> None:
    one = booked_bytes(tiny_bert(tmp_path / "one"))
    with running(tmp_path, BERTH_MEMORY_LIMIT=str(one - 1)) as server:
        tiny_bert(server.folder("bert"))
        ballast(server, "surprise", one)  # nothing in its files says so
        for name in ("bert", "surprise"):
            refused = server.load(name)
            assert refusal(refused) == (400, "memory.larger_than_limit"), refused.text
            assert str(one) in refused.json()["message"]
            assert "BERTH_MEMORY_LIMIT" in refused.json()["message"]
        assert (server.names(), booked(server)) == ([], 0)
        ballast(server, "surprise", one - 1)
        assert server.load("surprise").status_code == 200


def test_held_by_work_in_flight_is_waited_for_then_503(tmp_path: Path) -> None:
    with running(tmp_path, BERTH_MEMORY_LIMIT="1000") as server:
        ballast(server, "busy", 800)
        ballast(server, "hasty", 700, timeout_s=0.5)
        ballast(server, "patient", 700)
        for name in ("hasty", "patient", "busy"):
            server.load(name).raise_for_status()
        assert server.describe("busy")["tier"] == "device"
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            slow = pool.submit(server.invoke, "busy", 2.0)
            time.sleep(0.3)
            started = time.monotonic()
            refused = server.invoke("hasty", 0)
            assert refusal(refused) in {(503, "memory.busy"), (504, "model.timeout")}, refused.text
            assert time.monotonic() - started < 1.5
            assert server.invoke("patient", 0).status_code == 200
            assert slow.result().status_code == 200
        assert server.invoke("hasty", 0).status_code == 200


def test_who_waits_for_room_gets_it_as_soon_as_a_model_that_nobody_calls_has_come_up(tmp_path: Path) -> None:
    with running(tmp_path, BERTH_MEMORY_LIMIT="1000") as server:
        ballast(server, "waits", 700, timeout_s=8.0)
        ballast(server, "comes", 700, load_s=1.0)
        server.load("waits").raise_for_status()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            load = pool.submit(server.load, "comes")
            time.sleep(0.5)
            answer = server.invoke("waits", 0)
            assert answer.status_code == 200, answer.text
            assert load.result().status_code == 200


def test_a_model_that_makes_way_before_its_load_is_answered_is_loaded_all_the_same(tmp_path: Path) -> None:
    """Three models load at the same moment where one has room: the first two sink as soon as they have come up."""
    names = [f"m{number}" for number in range(3)]
    with running(tmp_path, BERTH_MEMORY_LIMIT="1000") as server:
        for name in names:
            ballast(server, name, 700, load_s=0.1, timeout_s=20.0)
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            for _ in range(5):
                loads = [pool.submit(server.load, name) for name in names]
                calls = [pool.submit(server.invoke, name, 0) for name in names]
                assert [load.result().status_code for load in loads] == [200] * 3, [
                    load.result().text for load in loads
                ]
                assert {call.result().status_code for call in calls} <= {200, 404}, "404: asked before its load was"
                assert server.names() == names
                assert [server.invoke(name, 0).status_code for name in names] == [200] * 3
                assert sum(server.describe(name)["tier"] == "device" for name in names) == 1
                for name in names:
                    assert server.unload(name).status_code == 200
                assert booked(server) == 0


def test_callers_that_give_up_while_their_model_rises_do_not_keep_it_from_sinking(tmp_path: Path) -> None:
    with running(tmp_path, BERTH_MEMORY_LIMIT="1000") as server:
        ballast(server, "slow", 700, load_s=1.0)
        ballast(server, "other", 700, timeout_s=8.0)
        for name in ("slow", "other"):
            server.load(name).raise_for_status()
        with pytest.raises(httpx.ReadTimeout):
            server.http.post("/models/slow/invoke", json=0, timeout=0.4)
        for _ in range(2):
            answer = server.invoke("other", 0)
            assert answer.status_code == 200, answer.text
            server.invoke("slow", 0).raise_for_status()


def test_pinned_models_never_sink_and_the_rest_is_507(tmp_path: Path) -> None:
    with running(tmp_path, BERTH_MEMORY_LIMIT="1000") as server:
        ballast(server, "pinned", 600, pin=True)
        ballast(server, "small", 300)
        ballast(server, "other", 300)
        ballast(server, "large", 500)
        for name in ("pinned", "small", "other"):
            server.load(name).raise_for_status()
        assert [server.describe(name)["tier"] for name in ("pinned", "small", "other")] == ["device", "disk", "device"]
        for _ in range(3):
            for name in ("small", "other"):
                server.invoke(name, 0).raise_for_status()
            assert server.describe("pinned")["tier"] == "device"
        refused = server.load("large")
        assert refusal(refused) == (507, "memory.no_room"), refused.text
        assert server.invoke("large", 0).status_code == 404
        assert server.unload("pinned").json()["freedBytes"] == 600
        assert server.load("large").status_code == 200


def test_in_platform_mode_nothing_sinks_and_507_comes_at_once(tmp_path: Path) -> None:
    one = booked_bytes(tiny_bert(tmp_path / "one"))
    with running(tmp_path, BERTH_MEMORY_LIMIT=str(2 * one), BERTH_EVICTION="platform", BERTH_SHARING="off") as server:
        for number in range(3):
            tiny_bert(server.folder(f"m{number}"), number)
        ballast(server, "surprise", 10)
        for number in range(2):
            server.load(f"m{number}").raise_for_status()
        for name in ("m2", "surprise"):
            started = time.monotonic()
            refused = server.load(name)
            assert refusal(refused) == (507, "memory.no_room"), refused.text
            assert "BERTH_EVICTION=platform" in refused.json()["message"]
            assert time.monotonic() - started < 5
        assert [server.describe(f"m{number}")["tier"] for number in range(2)] == ["device", "device"]
        assert server.names() == ["m0", "m1"]
        assert server.unload("m0").json()["freedBytes"] == one
        assert server.load("m2").status_code == 200
        assert server.invoke("m2", TEXT).status_code == 200
        assert "berth_demotions_total 0.0" in server.http.get("/metrics").text


def test_an_unknown_pin_is_refused_as_any_mistake_in_berth_json(server: Server) -> None:
    folder = tiny_bert(server.folder("mistaken"))
    (folder / "berth.json").write_text(json.dumps({"pinned": True}))
    refused = server.load("mistaken")
    assert refusal(refused) == (400, "model.archive")
    assert "did you mean pin?" in refused.json()["message"]


def test_what_is_larger_than_the_machine_takes_no_room_from_the_next_load(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        vast_bert(server.folder("vast"), probe.free_ram_bytes())
        tiny_bert(server.folder("small"))
        refused = server.load("vast")
        assert (refused.status_code, refused.json()["reason"]) == (400, "memory.larger_than_limit"), refused.text
        loaded = server.load("small")  # within the half second for which the machine is not asked again
        assert loaded.status_code == 200, loaded.text
        assert server.names() == ["small"]
