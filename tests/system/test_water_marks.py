"""Above the high mark idle models sink by themselves, down to the low one; and the machine's own figures are told."""

from __future__ import annotations

import time
from pathlib import Path

from tests.makers import tiny_bert
from tests.server import Server, running


def metric(server: Server, name: str) -> float:
    lines = server.http.get("/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_a_rise_finds_room_because_idle_models_sank_before_it(tmp_path: Path) -> None:
    size = (tiny_bert(tmp_path / "one") / "model.safetensors").stat().st_size
    marks = {"BERTH_MEMORY_LIMIT": str(10 * size), "BERTH_WATER_MARKS": "75-50", "BERTH_SHARING": "off"}
    with running(tmp_path, **marks) as server:
        for number in range(9):
            tiny_bert(server.folder(f"m{number}"), number)
            server.load(f"m{number}").raise_for_status()
            used = metric(server, 'berth_memory_bytes{kind="used"')
            assert used <= 8.1 * size
        deadline = time.monotonic() + 10
        while metric(server, 'berth_memory_bytes{kind="used"') > 7.5 * size and time.monotonic() < deadline:
            time.sleep(0.02)
        assert metric(server, 'berth_memory_bytes{kind="used"') <= 7.5 * size
        assert server.describe("m8")["tier"] == "device", "who has just come stays"
        for number in range(9):
            assert server.invoke(f"m{number}", {"inputs": "a b c"}).status_code == 200
        assert metric(server, 'berth_memory_gap_bytes{tier="device"}') < 0, "this machine has more than that"
