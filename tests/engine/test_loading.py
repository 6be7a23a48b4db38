"""Loads and rises that the machine refuses, in the real engine without its process."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from container.engine import loading
from container.engine.main import Parts
from container.errors import Failure, NoRoom
from container.front.errors import status_of
from container.memory import machine, mapping
from container.memory.ledger import Tier
from container.payload import Payload
from container.wire import messages as m
from tests.engine.test_left_behind import ask, run
from tests.makers import tiny_bert


def old_bert(tmp_path: Path) -> Path:
    """A model whose files may be trusted to be written to the end."""
    folder = tiny_bert(tmp_path / "base" / "models" / "bert")
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    return folder


def test_a_load_onto_a_full_disk_is_507_and_succeeds_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = old_bert(tmp_path)

    async def scenario(parts: Parts) -> None:
        with monkeypatch.context() as full:  # as much has to stay free as the volume has in all
            full.setattr(machine, "DISK_BYTES", 1 << 62)
            full.setattr(machine, "DISK_PART", 1.0)
            for _ in range(2):  # what went wrong for want of memory is tried anew each time
                with pytest.raises(NoRoom, match="the disk that holds the models has") as refused:
                    await parts.engine.load(m.Load(1, "bert", str(folder)))
                assert status_of(refused.value) == 507
            assert (parts.models.get("bert"), len(parts.keeper.ledger)) == (None, 0)
        await parts.engine.load(m.Load(1, "bert", str(folder)))
        answer = await ask(parts, "bert")
        assert isinstance(answer, m.Answer)
        assert isinstance(answer.result, Payload)
        await parts.engine.unload(m.Unload(1, "bert"))

    run(tmp_path, scenario)


def test_a_file_that_cannot_be_mapped_when_its_model_rises_again_is_507_and_no_fault_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = old_bert(tmp_path)

    def refuse(*arguments: object) -> None:
        raise MemoryError("4096 bytes could not be mapped: Cannot allocate memory")

    async def scenario(parts: Parts) -> None:
        await parts.engine.load(m.Load(1, "bert", str(folder)))
        await parts.residence.sink("bert")
        with monkeypatch.context() as short:
            short.setattr(mapping, "map_file", refuse)
            for _ in range(2):
                answer = await ask(parts, "bert")
                assert isinstance(answer, m.Answer)
                assert isinstance(answer.result, Failure)
                assert answer.result.code == "memory.exhausted"
        assert parts.keeper.ledger.tier("bert") is Tier.DISK
        answer = await ask(parts, "bert")
        assert isinstance(answer, m.Answer)
        assert isinstance(answer.result, Payload), "the model is as it was"
        await parts.engine.unload(m.Unload(1, "bert"))

    run(tmp_path, scenario)


def test_a_model_that_is_unloaded_while_it_leaves_its_changed_files_is_gone_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "DRAIN_S", 0.05)
    folder = old_bert(tmp_path)

    async def scenario(parts: Parts) -> None:
        await parts.engine.load(m.Load(1, "bert", str(folder)))
        leaving, may_go = asyncio.Event(), asyncio.Event()
        put_down = parts._lanes.put_down

        async def slowly(name: str, *, keep: bool = False) -> None:
            leaving.set()
            await may_go.wait()
            await put_down(name, keep=keep)

        monkeypatch.setattr(parts._lanes, "put_down", slowly)
        os.utime(folder / "model.safetensors", (1e9 + 1, 1e9 + 1))
        asked = asyncio.ensure_future(ask(parts, "bert"))
        await leaving.wait()
        unloading = asyncio.ensure_future(parts.engine.unload(m.Unload(1, "bert")))
        answer = await asked
        assert isinstance(answer, m.Answer)
        assert isinstance(answer.result, Failure)
        may_go.set()
        await asyncio.wait_for(unloading, 10)
        assert (parts.models.get("bert"), len(parts.keeper.ledger)) == (None, 0)

    run(tmp_path, scenario)
