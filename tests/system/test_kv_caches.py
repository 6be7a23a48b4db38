"""Keys and values of generations are bytes of the ledger: what fits runs, what would fit waits, the rest is 400."""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from container.nets.gpt2 import Config, KvCache
from tests.handlers.models import gpt2
from tests.makers import tiny_bert
from tests.server import Server, running

PROMPT = "the ship lies"
LONG = 300
CACHES = "berth_cache_bytes{"
DEVICES = ("cpu", "sim:1GiB@1GB/s")


def bytes_of(tokens: int) -> int:
    return KvCache.bytes(Config(n_embd=32, n_layer=2), 1, tokens)


def metric(server: Server, name: str) -> float:
    lines = server.http.get("/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


def used(server: Server) -> float:
    return metric(server, 'berth_memory_bytes{kind="used",tier="device"}')


def body(prompt: Any, tokens: int, **more: Any) -> dict[str, Any]:
    return {"inputs": prompt, "parameters": {"max_new_tokens": tokens, **more}}


@pytest.fixture(scope="module", params=DEVICES, ids=("cpu", "sim"))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A small GPT-2 with room for two long generations beside it."""
    base = tmp_path_factory.mktemp("base")
    folder = gpt2(base / "models" / "gen" / "model", n_positions=1024)
    size = (folder / "model.safetensors").stat().st_size
    limit = size + int(2.5 * bytes_of(LONG + 16)) + 80_000
    with running(base, BERTH_MEMORY_LIMIT=str(limit), BERTH_DEVICE=request.param) as started:
        started.load("gen").raise_for_status()
        yield started


def test_more_long_generations_than_fit_are_all_answered_right_and_the_ledger_is_as_before(server: Server) -> None:
    prompts = [f"{PROMPT} {'o' * number}" for number in range(9)]
    alone = [server.invoke("gen", body(prompt, LONG)).raise_for_status().json() for prompt in prompts]
    before = used(server)
    limit = int(server.environ["BERTH_MEMORY_LIMIT"]) - server.describe("gen")["bytes"]
    seen = []
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(server.invoke, "gen", body(prompt, LONG)) for prompt in prompts]
        while not all(one.done() for one in asked):
            seen.append((metric(server, CACHES), server.describe("gen").get("cacheBytes", 0)))
            time.sleep(0.01)
    answers = [one.result() for one in asked]
    assert [answer.status_code for answer in answers] == [200] * 9, [answer.text for answer in answers]
    assert [answer.json() for answer in answers] == alone
    assert 0 < max(most for most, _ in seen) <= limit
    assert 0 < max(most for _, most in seen) <= limit
    assert (used(server), metric(server, CACHES)) == (before, 0)
    assert "cacheBytes" not in server.describe("gen")


def test_what_can_never_fit_is_refused_with_the_arithmetic_and_its_neighbours_are_answered(server: Server) -> None:
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        small, large, other = pool.map(lambda tokens: server.invoke("gen", body(PROMPT, tokens)), (5, 1000, 5))
    assert (small.status_code, other.status_code) == (200, 200)
    assert (large.status_code, large.json()["reason"]) == (400, "memory.larger_than_limit")
    for part in ("1000 more are asked for", f"({bytes_of(1)} a token)", "ask for at most", "BERTH_MEMORY_LIMIT"):
        assert part in large.json()["message"]


def test_idle_models_sink_for_a_generation_and_rise_again(server: Server) -> None:
    tiny_bert(server.folder("bert"), 1)
    server.load("bert").raise_for_status()
    assert server.describe("bert")["tier"] == "device"
    first = server.invoke("bert", {"inputs": "a b c"}).json()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for answer in pool.map(lambda number: server.invoke("gen", body(PROMPT, LONG)), range(4)):
            assert answer.status_code == 200, answer.text
    assert server.invoke("bert", {"inputs": "a b c"}).json() == first
    server.unload("bert").raise_for_status()


def test_a_caller_that_hangs_up_gives_its_bytes_back(server: Server) -> None:
    before = used(server)
    with pytest.raises(httpx.ReadTimeout):  # in many parts, which would take seconds
        server.http.post("/models/gen/invoke", json=body([PROMPT] * 60, LONG), timeout=0.3)
    content = json.dumps(body(PROMPT, LONG, return_full_text=False) | {"stream": True})
    headers = {"content-type": "application/json"}
    with server.http.stream("POST", "/models/gen/invoke", content=content, headers=headers) as stream:
        assert next(stream.iter_raw())
    deadline = time.monotonic() + 10
    while metric(server, CACHES) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (metric(server, CACHES), used(server)) == (0, before)


def test_who_waits_for_memory_to_its_deadline_gets_503_and_when_to_come_again(tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "models" / "gen" / "model", n_positions=1024)
    (folder / "berth.json").write_text(json.dumps({"timeout_s": 1}))
    limit = (folder / "model.safetensors").stat().st_size + int(1.2 * bytes_of(1010)) + 40_000
    with running(tmp_path, BERTH_MEMORY_LIMIT=str(limit)) as server:
        server.load("gen").raise_for_status()
        before = used(server)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(server.invoke, "gen", body(PROMPT, 980)) for _ in range(8)]
            answers = [one.result() for one in asked]
        codes = [answer.status_code for answer in answers]
        told = [answer for answer in answers if answer.status_code == 503]
        assert set(codes) <= {200, 503, 504}, [answer.text for answer in answers]
        assert told, codes
        assert codes.count(504) <= 1, "the one that had its memory and ran; the others lacked nothing else"
        reasons = {(answer.json()["reason"], "retry-after" in answer.headers) for answer in told}
        assert reasons == {("memory.busy", True)}
        deadline = time.monotonic() + 20
        while metric(server, CACHES) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (metric(server, CACHES), used(server)) == (0, before)
        assert server.invoke("gen", body(PROMPT, 3)).status_code == 200
