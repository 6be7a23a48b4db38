"""Two hundred models under a limit that holds twenty: every call right, /ping prompt all the while."""

from __future__ import annotations

import concurrent.futures
import random
import threading
import time
from pathlib import Path

import pytest

from container.memory.sizes import checkpoint_bytes
from tests.makers import tiny_bert
from tests.server import running

MODELS = 200


def test_two_hundred_models_answer_rightly_where_twenty_fit(tmp_path: Path) -> None:
    size = checkpoint_bytes(tiny_bert(tmp_path / "one"))
    with running(tmp_path, BERTH_MEMORY_LIMIT=str(20 * size + size // 2), BERTH_SHARING="off") as server:
        pings: list[float] = []
        stop = threading.Event()

        def ping() -> None:
            while not stop.is_set():
                started = time.perf_counter()
                assert server.http.get("/ping").status_code == 200
                pings.append(time.perf_counter() - started)
                time.sleep(0.01)

        pinger = threading.Thread(target=ping)
        pinger.start()
        expected = {}
        for number in range(MODELS):
            name = f"m{number}"
            tiny_bert(server.folder(name), number)
            assert server.load(name).status_code == 200, server.log()[-3000:]
            expected[name] = server.invoke(name, {"inputs": "a b c"}).raise_for_status().json()
        assert len({tuple(vector) for vector in expected.values()}) == MODELS
        assert len(server.names()) == MODELS
        order = [f"m{number}" for number in range(MODELS)] * 3
        random.Random(1).shuffle(order)

        def call(name: str) -> None:
            answer = server.invoke(name, {"inputs": "a b c"})
            assert answer.status_code == 200, answer.text
            assert answer.json() == pytest.approx(expected[name], abs=1e-5)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(call, order))
        stop.set()
        pinger.join()
        tiers = [server.describe(f"m{number}")["tier"] for number in range(MODELS)]
        assert tiers.count("device") <= 20
        assert tiers.count("device") + tiers.count("disk") == MODELS
        print(f"ping p99 {sorted(pings)[int(len(pings) * 0.99)] * 1e3:.1f} ms over {len(pings)} pings")
