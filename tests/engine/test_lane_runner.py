"""Models of ours come up, sink and rise again on real lanes: what stays of them, and what must not."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import threading
import tracemalloc
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.disk import forget_cached
from container.archive.describe import describe
from container.archive.manifest import Manifest
from container.engine.runners import LaneRunner
from container.memory.known import Known
from container.memory.ledger import Segment
from container.memory.tokenizers import Tokenizers
from container.model.dispatch import Dispatcher
from container.model.lanes import Lanes
from container.model.ticket import Ticket
from container.nets import stock
from container.payload import Payload
from tests.makers import tiny_bert

QUESTION = Payload(b'{"inputs": "a b c"}')


class Stage:
    """A runner with everything real under it."""

    def __init__(self, free: int = 1 << 40) -> None:
        self.lanes = Lanes(1)
        self.known = Known("cpu", allow_pickle=False, share=True, free=lambda: free)
        threads = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.words = Tokenizers(share=True)
        self.runner = LaneRunner(Dispatcher(self.lanes), *threads, "cpu", self.known, lambda name: 1 << 30, self.words)

    async def load(self, name: str, folder: Path) -> Manifest:
        manifest = describe(folder)
        self.runner.prepare(name, manifest, 0)
        await self.runner.bring_up(name, manifest)
        return manifest

    async def ask(self, name: str) -> list[float]:
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.runner.submit(name, Ticket(QUESTION, answered.set_result, 0.0))
        answer = await answered
        assert isinstance(answer, Payload), answer
        vector: list[float] = msgspec.json.decode(answer.body)
        return vector


def on_stage(scenario: Callable[[Stage], Awaitable[None]], free: int = 1 << 40) -> None:
    async def main() -> None:
        stage = Stage(free)
        await asyncio.wait_for(scenario(stage), 60)
        stage.lanes.close()

    asyncio.run(main())


def mapped(folder: Path) -> bool:
    return str(folder) in Path("/proc/self/maps").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tiny_bert(tmp_path / "a")
    for path in made.iterdir():
        os.utime(path, (1e9, 1e9))
    return made


def test_a_model_that_rises_again_reads_nothing_but_its_weights(folder: Path) -> None:
    async def scenario(stage: Stage) -> None:
        manifest = await stage.load("a", folder)
        right, segments = await stage.ask("a"), stage.known.segments("a") + stage.words.segments("a")
        for _ in range(3):
            await stage.runner.put_down("a", keep=True)
            assert not mapped(folder)
            assert (stage.known.segments("a"), stage.known.mapped_bytes(lambda name: True)) == ([], 0)
            for path in folder.iterdir():
                if path.suffix != ".safetensors":
                    path.rename(path.with_suffix(".gone"))  # looking whether they changed is the engine's
            assert stage.runner.again("a") == segments
            up = await stage.runner.bring_up("a", manifest)
            assert (up.segments, list(up.times_ms)) == (segments, ["rise"])
            assert await stage.ask("a") == right
            for path in folder.glob("*.gone"):
                path.rename(path.with_suffix(".txt" if path.stem == "vocab" else ".json"))

    on_stage(scenario)


def test_models_that_take_turns_where_the_page_cache_has_no_room_answer_as_before(tmp_path: Path) -> None:
    """Each is read into the memory that the other has just left."""
    folders = {name: tiny_bert(tmp_path / name, seed, hidden=512) for seed, name in enumerate("ab")}

    async def scenario(stage: Stage) -> None:
        manifests = {name: await stage.load(name, folder) for name, folder in folders.items()}
        right = {name: await stage.ask(name) for name in folders}
        assert right["a"] != right["b"]
        await stage.runner.put_down("a", keep=True)
        for turn in range(10):
            rises, sinks = ("a", "b") if turn % 2 == 0 else ("b", "a")
            for file in folders[rises].glob("*.safetensors"):
                forget_cached(file)
            assert stage.runner.again(rises)
            await stage.runner.put_down(sinks, keep=True)
            await stage.runner.bring_up(rises, manifests[rises])
            assert stage.known.spare_bytes == 0
            assert await stage.ask(rises) == right[rises]

    on_stage(scenario, free=0)


def test_a_model_put_down_for_good_leaves_nothing(folder: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.load("a", folder)
        await stage.runner.put_down("a", keep=True)
        await stage.runner.put_down("a")
        assert stage.runner.again("a") is None
        await stage.load("a", folder)
        await stage.runner.put_down("a")
        assert stage.runner.again("a") is None
        assert not mapped(folder)

    on_stage(scenario)


@pytest.mark.parametrize("harm", ["written", "removed", "tokens"])
def test_what_was_changed_under_a_sunk_model_is_not_used_again(folder: Path, tmp_path: Path, harm: str) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.load("a", folder)
        await stage.runner.put_down("a", keep=True)
        weights = folder / "model.safetensors"
        if harm == "written":
            shutil.copy(tiny_bert(tmp_path / "b", 1) / weights.name, weights)
        elif harm == "removed":
            weights.unlink()
        else:  # between the engine's look at the folder and this
            stock.STOCK._kept.clear()
            gc.collect()
            (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text().replace("##z", "##zz"))
        assert stage.runner.again("a") is None
        if harm != "removed":
            await stage.load("a", folder)
            await stage.load("fresh", folder)
            assert await stage.ask("a") == await stage.ask("fresh")

    on_stage(scenario)


def test_two_copies_share_again_when_they_rise(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        folders = {name: tiny_bert(tmp_path / name, hidden=128) for name in "ab"}
        manifests = {name: await stage.load(name, folder) for name, folder in folders.items()}
        for name in "ab":
            await stage.runner.join(name)
        shared = stage.known.segments("b")
        assert shared[0].id == stage.known.segments("a")[0].id != "a"
        right = await stage.ask("b")
        for _ in range(2):
            words = stage.words.segments("b")
            await stage.runner.put_down("b", keep=True)
            assert stage.words.segments("b") == []
            assert stage.runner.again("b") == shared + words, "it is reserved as what it shares already"
            await stage.runner.bring_up("b", manifests["b"])
            assert await stage.ask("b") == right
        for name in "ab":
            await stage.runner.put_down(name, keep=True)
        alone = Segment("a", sum(each.bytes for each in shared))
        assert stage.runner.again("a") == [alone, *words], "nobody is there"

    on_stage(scenario)


def test_unloading_waits_for_the_comparing_that_runs_and_not_for_those_in_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(stage: Stage) -> None:
        for name in "abc":
            await stage.load(name, tiny_bert(tmp_path / name, hidden=128))
        ends, begun = {name: threading.Event() for name in "abc"}, []

        def join(name: str) -> list[str]:
            begun.append(name)
            ends[name].wait()
            return []

        monkeypatch.setattr(stage.known, "is_whole", lambda name: False)
        monkeypatch.setattr(stage.known, "join", join)
        joins = [asyncio.ensure_future(stage.runner.join(name)) for name in "abc"]
        while not begun:
            await asyncio.sleep(0.001)
        settled = asyncio.ensure_future(stage.runner.settle())
        await asyncio.sleep(0.02)
        assert not settled.done(), "a may hold tensors of what is unloaded"
        ends["a"].set()
        while len(begun) < 2:
            await asyncio.sleep(0.001)
        try:
            await asyncio.wait_for(settled, 5)
        finally:
            for end in ends.values():
                end.set()
            await asyncio.gather(*joins)
        await stage.runner.settle()

    on_stage(scenario)


def test_a_model_at_rest_keeps_no_tokenizer_and_few_bytes(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        names = [f"m{number}" for number in range(20)]
        for number, name in enumerate(names):
            folder = tiny_bert(tmp_path / name, number, layers=12)
            (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text().replace("##z", f"##z{number}"))
        await stage.load(names[0], tmp_path / names[0])
        await stage.runner.put_down(names[0], keep=True)
        stock.STOCK._kept.clear()
        gc.collect()
        before = set(stock.STOCK._known)
        tracemalloc.start()
        for name in names[1:]:
            await stage.load(name, tmp_path / name)
            await stage.runner.put_down(name, keep=True)
        stock.STOCK._kept.clear()
        gc.collect()
        each = tracemalloc.get_traced_memory()[0] / (len(names) - 1)
        tracemalloc.stop()
        assert set(stock.STOCK._known) == before, "a tokenizer is kept by a sunk model"
        assert each < 20_000

    on_stage(scenario)
