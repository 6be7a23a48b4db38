"""Rising and sinking on a rehearsed device, in the real engine without its process: what goes wrong leaves no byte."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from container.engine.main import Parts
from container.errors import LoadFailed, OutOfMemory, ServingError
from container.memory import regions
from container.memory.align import aligned
from container.memory.blocks import Blocks
from container.memory.ledger import Tier
from container.memory.reading import Source
from container.memory.sim import SimDevice
from container.model import watch
from container.payload import Payload
from container.settings import Settings
from container.wire import messages as m
from container.wire.server import make_run_folder
from tests.makers import tiny_bert

#: Wherever an error comes from on its way up, and what callers are told.
PLACES = {
    "reading": (Source, "read_into"),
    "copying": (SimDevice, "copy"),
    "allocating": (SimDevice, "block"),
}
ERRORS: dict[str, tuple[Callable[[], Exception], type[ServingError]]] = {
    "the disk": (lambda: OSError(errno.EIO, "Input/output error"), LoadFailed),
    "the driver": (lambda: RuntimeError("CUDA error: invalid argument"), LoadFailed),
    "memory": (MemoryError, OutOfMemory),
    "memory, of torch": (lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), OutOfMemory),
}


def run(tmp_path: Path, scenario: Callable[[Parts], Awaitable[None]], **environ: str) -> None:
    base = {"SAGEMAKER_BASE_DIR": str(tmp_path / "base"), "BERTH_STATE_DIR": str(tmp_path / "state")}
    device = {"BERTH_DEVICE": "sim:64MiB@10GB/s", "BERTH_HOST_MEMORY_LIMIT": "64MiB"}
    settings = Settings.read({**base, "SAGEMAKER_MULTI_MODEL": "true", **device, **environ})
    make_run_folder(settings.run_dir)
    watch.Page(settings.run_dir / "page", create=True)

    async def main() -> None:
        await asyncio.wait_for(scenario(Parts(settings, lambda message: None)), 60)

    asyncio.run(main())


def bert(tmp_path: Path, name: str, seed: int = 0, layers: int = 2) -> Path:
    return tiny_bert(tmp_path / "base" / "models" / name, seed, layers=layers)


def layout_bytes(folder: Path) -> int:
    return Source(folder, "", "cpu", allow_pickle=False).layout.bytes


async def load(parts: Parts, folder: Path) -> None:
    await parts.engine.load(m.Load(1, folder.name, str(folder)))


async def ask(parts: Parts, name: str, within_s: float = 10.0) -> Any:
    """Return the payload or the failure that ``name`` answers."""
    answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    request = m.Invoke(1, name, Payload(b'{"inputs": "a bad cab"}'), time.monotonic() + within_s)
    parts.engine.invoke(request, answered.set_result)
    return (await answered).result


async def sink(parts: Parts, *names: str) -> None:
    """Take ``names`` to the disk, once nothing of them is in flight."""
    for name in names:
        while parts.models.known(name).held:
            await asyncio.sleep(0.001)
        await parts.residence.leave(name)


def blocks_of(parts: Parts) -> Blocks:
    return parts._lanes.blocks  # type: ignore[attr-defined, no-any-return]


def booked(parts: Parts) -> dict[str, int]:
    """Return the bytes that are not free in the ledger, by tier, and those that somebody has in an arena."""
    parts.keeper.ledger.check()
    blocks = blocks_of(parts)
    found = {"in ram": blocks.host.used_bytes, "on the device": blocks.on_device.used_bytes}
    for tier in parts.keeper.ledger.tiers:
        sums = parts.keeper.ledger.figures(tier)
        found[tier.value] = sums.used + sums.reserved + sums.leaving
    return {where: nbytes for where, nbytes in found.items() if nbytes}


def failing(monkeypatch: pytest.MonkeyPatch, place: str, error: Callable[[], Exception], times: int = 1 << 30) -> None:
    """Have ``place`` raise an ``error`` the next ``times`` times."""
    owner, name = PLACES[place]
    real, left = getattr(owner, name), [times]

    def fail(*given: Any, **named: Any) -> Any:
        if not left[0]:
            return real(*given, **named)
        left[0] -= 1
        raise error()

    monkeypatch.setattr(owner, name, fail)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ERRORS)
def test_a_load_that_any_error_ends_leaves_no_name_and_no_byte_and_the_next_one_succeeds(
    place: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bert(tmp_path, "a")
    error, told = ERRORS[kind]

    async def scenario(parts: Parts) -> None:
        with monkeypatch.context() as patched:
            failing(patched, place, error)
            with pytest.raises(told):
                await load(parts, folder)
        assert parts.models.get("a") is None
        assert booked(parts) == {}
        os.utime(folder / "vocab.txt")  # a mended archive: what failed for another reason than memory is remembered
        await load(parts, folder)
        assert isinstance(await ask(parts, "a"), Payload)

    run(tmp_path, scenario)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ERRORS)
def test_a_rise_that_any_error_ends_is_told_and_the_next_call_makes_it_rise(
    place: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bert(tmp_path, "a")
    error, told = ERRORS[kind]

    async def scenario(parts: Parts) -> None:
        await load(parts, folder)
        await sink(parts, "a")
        await parts.residence.trim()
        with monkeypatch.context() as patched:
            failing(patched, place, error)
            assert (await ask(parts, "a")).code == told.code
        assert booked(parts).keys() <= {"in ram", "host"}, "what was read already stays in RAM"
        assert isinstance(await ask(parts, "a"), Payload)
        await parts.engine.unload(m.Unload(1, "a"))
        assert booked(parts) == {}

    run(tmp_path, scenario)


def test_a_file_that_vanishes_after_it_was_looked_at_is_a_failed_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, read = bert(tmp_path, "a"), Source.read_into
    weights = folder / "model.safetensors"
    raw = weights.read_bytes()

    def late(*given: Any) -> None:
        weights.unlink(missing_ok=True)
        read(*given)

    async def scenario(parts: Parts) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Source, "read_into", late)
            with pytest.raises(LoadFailed, match=r"model\.safetensors"):
                await load(parts, folder)
        assert (parts.models.get("a"), booked(parts)) == (None, {})
        weights.write_bytes(raw)
        await load(parts, folder)
        assert isinstance(await ask(parts, "a"), Payload)

    run(tmp_path, scenario)


@pytest.mark.parametrize("place", ["reading", "copying"])
def test_a_rise_that_runs_out_of_memory_sinks_what_is_idle_and_comes_up(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(parts: Parts) -> None:
        for seed, name in enumerate("ab"):
            await load(parts, bert(tmp_path, name, seed))
        failing(monkeypatch, place, MemoryError, times=1)
        await load(parts, bert(tmp_path, "c", 3))
        ledger = parts.keeper.ledger
        assert ledger.used_by(Tier.DEVICE) == {"c"}
        assert ledger.used_by(Tier.HOST) == {"a", "b", "c"}
        assert isinstance(await ask(parts, "c"), Payload)

    run(tmp_path, scenario)


def test_a_large_model_rises_over_small_ones_that_lie_in_every_extent_and_all_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions, "STEP_BYTES", 256)
    small, large = (layout_bytes(bert(tmp_path, name, 0, layers)) for name, layers in (("small", 2), ("big", 11)))
    assert small * 4 < large < small * 4.8
    extent = aligned(small * 27 // 10)  # two small ones an extent: sixteen lie in all eight
    names = [f"s{number}" for number in range(17)]

    async def scenario(parts: Parts) -> None:
        for number, name in enumerate(names[:16]):
            await load(parts, bert(tmp_path, name, number))
        ledger, region = parts.keeper.ledger, blocks_of(parts).on_device
        assert ledger.used_by(Tier.DEVICE) == set(names[:16])
        assert region.capacity == 8 * extent
        assert ledger.figures(Tier.DEVICE).free >= large
        await load(parts, bert(tmp_path, "big", 0, 11))
        assert "big" in ledger.used_by(Tier.DEVICE)
        assert len(ledger.used_by(Tier.DEVICE)) == 13, "two extents became one"
        assert parts.keeper.demotions == 4
        await load(parts, bert(tmp_path, "s16", 16))
        for name in (*names, "big", *names):
            assert isinstance(await ask(parts, name), Payload)
            assert region.capacity <= region.limit
        await sink(parts, *names, "big")
        assert isinstance(await ask(parts, "big"), Payload), "every extent is empty, and none is as large"

    run(tmp_path, scenario, BERTH_DEVICE=f"sim:{8 * extent}@10GB/s", BERTH_MEMORY_LIMIT=str(8 * extent))


def test_a_fine_tune_that_passes_through_ram_leaves_the_trunk_there_to_those_that_stay(tmp_path: Path) -> None:
    base, tuned = bert(tmp_path, "base"), bert(tmp_path, "tuned")
    weights = load_file(tuned / "model.safetensors")
    weights["pooler.dense.weight"] += 1
    save_file(weights, tuned / "model.safetensors")
    room = layout_bytes(base)

    async def scenario(parts: Parts) -> None:
        for folder in (base, tuned):
            await load(parts, folder)
        ledger, blocks = parts.keeper.ledger, blocks_of(parts)
        assert (ledger.used_by(Tier.DEVICE), ledger.used_by(Tier.HOST)) == ({"base", "tuned"}, {"base"})
        assert blocks.segments("base")[0] in blocks.segments("tuned")
        await parts.residence.sink("base", Tier.HOST)
        assert (ledger.figures(Tier.HOST).used, blocks.host.used_bytes) == (0, 0)
        await load(parts, bert(tmp_path, "other", 1))
        assert ledger.used_by(Tier.HOST) == {"other"}
        for name in ("base", "tuned", "other"):
            assert isinstance(await ask(parts, name), Payload)

    run(tmp_path, scenario, BERTH_HOST_MEMORY_LIMIT=str(room))


def test_neighbours_that_do_not_sink_are_not_counted_and_nobody_waits_for_them_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the book and the arena had parted ways: what lies in the arena is nobody's in the book."""
    room = layout_bytes(bert(tmp_path, "a"))

    async def scenario(parts: Parts) -> None:
        assert blocks_of(parts).host.take(room, "unknown") is not None
        monkeypatch.setattr(Blocks, "neighbours", lambda *given: {"b"})
        await load(parts, bert(tmp_path, "b", 1))
        await load(parts, bert(tmp_path, "a"))
        ledger = parts.keeper.ledger
        assert (ledger.used_by(Tier.DEVICE), ledger.used_by(Tier.HOST)) == ({"a", "b"}, set())
        assert parts.keeper.demotions == 0

    run(tmp_path, scenario, BERTH_HOST_MEMORY_LIMIT=str(room))


def test_a_look_that_runs_out_of_memory_is_tried_again_once_what_is_idle_has_sunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, left = Blocks.prepare, [1]

    def scarce(*given: Any) -> Any:
        if left[0]:
            left[0] -= 1
            torch.empty(1 << 60, dtype=torch.uint8)
        return prepare(*given)

    async def scenario(parts: Parts) -> None:
        await load(parts, bert(tmp_path, "a", 1))
        monkeypatch.setattr(Blocks, "prepare", scarce)
        await load(parts, bert(tmp_path, "b", 2))
        assert parts.keeper.ledger.used_by(Tier.DEVICE) == {"b"}

    run(tmp_path, scenario)
