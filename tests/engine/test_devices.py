"""How much models may have, by the settings and what is free at start."""

from __future__ import annotations

from pathlib import Path

import pytest

from container.engine import devices
from container.engine.main import Parts
from container.errors import LargerThanTier, NoRoom
from container.memory import machine, probe
from container.memory.ledger import Tier
from container.memory.sim import SimDevice
from container.settings import Settings
from container.wire import messages as m
from tests.engine.test_left_behind import run
from tests.engine.test_loading import old_bert

FREE_RAM = 1000
DEVICE, HOST = Tier.DEVICE, Tier.HOST


@pytest.mark.parametrize(
    ("device", "environ", "found"),
    [
        ("", {}, {DEVICE: 800}),
        ("", {"BERTH_MEMORY_LIMIT": "300"}, {DEVICE: 300}),
        ("", {"BERTH_MEMORY_LIMIT": "5000"}, {DEVICE: 5000}),  # what the machine lacks now it may have later
        ("", {"BERTH_HOST_MEMORY_LIMIT": "300"}, {DEVICE: 800}),
        ("sim:100@1GB/s", {}, {DEVICE: 80, HOST: 500}),
        ("sim:100@1GB/s", {"BERTH_MEMORY_LIMIT": "60"}, {DEVICE: 60, HOST: 500}),
        ("sim:100@1GB/s", {"BERTH_MEMORY_LIMIT": "5000"}, {DEVICE: 5000, HOST: 500}),
        ("sim:100@1GB/s", {"BERTH_HOST_MEMORY_LIMIT": "5000"}, {DEVICE: 80, HOST: 5000}),
        ("sim:100@1GB/s", {"BERTH_MEMORY_LIMIT": "60", "BERTH_HOST_MEMORY_LIMIT": "0"}, {DEVICE: 60, HOST: 0}),
    ],
)
def test_models_have_what_is_set_else_80_percent_of_the_device_and_half_of_the_ram_under_it(
    monkeypatch: pytest.MonkeyPatch, device: str, environ: dict[str, str], found: dict[Tier, int]
) -> None:
    monkeypatch.setattr(probe, "free_ram_bytes", lambda: FREE_RAM)
    assert devices.limits(Settings.read(environ), devices.open_device(device)) == found


def test_a_device_that_others_fill_when_the_server_starts_refuses_for_now_and_not_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, free = old_bert(tmp_path), {"now": 1000}
    monkeypatch.setattr(SimDevice, "free_bytes", lambda self: free["now"])
    monkeypatch.setattr(machine, "_EVERY_S", 0.0)

    async def scenario(parts: Parts) -> None:
        with pytest.raises(NoRoom, match="others on this machine leave no more than 1000 bytes to all models"):
            await parts.engine.load(m.Load(1, "bert", str(folder)))
        free["now"] = 1 << 30
        await parts.engine.load(m.Load(1, "bert", str(folder)))
        assert parts.keeper.ledger.tier("bert") is DEVICE
        await parts.engine.unload(m.Unload(1, "bert"))

    run(tmp_path, scenario, BERTH_DEVICE="sim:1GiB@1GB/s", BERTH_MEMORY_LIMIT="512MiB")


def test_what_is_larger_than_the_limit_is_refused_for_good_however_little_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = old_bert(tmp_path)
    monkeypatch.setattr(SimDevice, "free_bytes", lambda self: 1000)

    async def scenario(parts: Parts) -> None:
        with pytest.raises(LargerThanTier, match=r"limit of the device tier is 2\.0 KiB"):
            await parts.engine.load(m.Load(1, "bert", str(folder)))

    run(tmp_path, scenario, BERTH_DEVICE="sim:1GiB@1GB/s", BERTH_MEMORY_LIMIT="2048")
