"""Blocks under a rehearsed device: bytes right on every tier, shared once, gone when nobody wants them."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from safetensors.torch import save_file

from container.archive.manifest import Berth, Manifest
from container.errors import BadArchive
from container.memory import reading
from container.memory.arena import NoRun
from container.memory.block import Views
from container.memory.blocks import Blocks
from container.memory.ledger import Tier
from container.memory.regions import DeviceRegion, HostRegion
from container.memory.sim import SimDevice
from container.memory.weights import WeightsClosed

MIB = 1 << 20


def tensors(seed: int, rows: int = 512) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "words": torch.randn(rows, 64, generator=generator),
        "odd": torch.randn(7, generator=generator),
        "ids": torch.arange(5),
        "head": torch.randn(2, 64, generator=generator),
        "none": torch.zeros(0, 3),
    }


def write(folder: Path, weights: dict[str, torch.Tensor], **settings: str) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    return Manifest("folder", str(folder), "", settings=Berth(**settings))  # type: ignore[arg-type]


@pytest.fixture
def blocks() -> Iterator[Blocks]:
    yield made()


def made(host: int = 64 * MIB, device: int = 64 * MIB, *, share: bool = True, speed: str = "100GB") -> Blocks:
    sim = SimDevice(f"sim:{device}@{speed}/s")
    readers = ThreadPoolExecutor(2)
    return Blocks(sim, HostRegion(sim, host), DeviceRegion(sim, device), readers, allow_pickle=True, share=share)


def up(blocks: Blocks, name: str, manifest: Manifest) -> dict[str, torch.Tensor]:
    blocks.prepare(name, manifest)
    views = blocks.open(name, manifest, Path(manifest.model_dir))
    blocks.lift(name)
    return {key: tensor.clone() for key, tensor in views.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_is_the_same_on_every_tier_and_gone_when_closed(blocks: Blocks, tmp_path: Path) -> None:
    weights = tensors(1)
    manifest = write(tmp_path, weights)
    (segment,) = blocks.prepare("a", manifest)
    views = blocks.open("a", manifest, tmp_path)
    assert same(dict(views), weights)
    blocks.lift("a")
    assert same(dict(views), weights)
    assert (blocks.host.used_bytes, blocks.on_device.used_bytes) == (segment.bytes, segment.bytes)
    stray = views["words"]
    blocks.lower("a")
    assert stray.isnan().all(), "what was dropped is overwritten"
    with pytest.raises(WeightsClosed):
        views["words"]
    assert (blocks.host.used_bytes, blocks.on_device.used_bytes) == (segment.bytes, 0)
    (tmp_path / "model.safetensors").unlink()  # the copy in RAM is the one that counts
    blocks.lift("a")
    assert same(dict(views), weights)
    blocks.drop_host("a")
    assert same(dict(views), weights)
    blocks.close("a")
    assert (blocks.host.used_bytes, blocks.on_device.used_bytes, blocks.segments("a")) == (0, 0, [])


def test_predictions_are_exact_and_the_dtype_is_converted_once(blocks: Blocks, tmp_path: Path) -> None:
    manifest = write(tmp_path, tensors(2), dtype="bfloat16")
    (segment,) = blocks.prepare("a", manifest)
    got = up(blocks, "a", manifest)
    assert {name: tensor.dtype for name, tensor in got.items()}["words"] is torch.bfloat16
    assert torch.equal(got["words"], tensors(2)["words"].bfloat16())
    assert torch.equal(got["ids"], torch.arange(5))
    assert blocks.on_device.used_bytes == segment.bytes == 512 * 64 * 2 + 256 * 3


def test_pickles_with_tied_tensors_are_read_too(blocks: Blocks, tmp_path: Path) -> None:
    words = torch.randn(100, 8)
    torch.save({"wte": words, "lm_head": words, "b": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    got = up(blocks, "a", Manifest("folder", str(tmp_path)))
    assert torch.equal(got["lm_head"], words)
    assert blocks.on_device.used_bytes == 3328 + 256


def test_copies_are_one_block_and_a_fine_tune_is_a_head(tmp_path: Path) -> None:
    blocks = made()
    one = tensors(3)
    tuned = {**one, "head": torch.ones(2, 64)}
    for name, weights in (("a", one), ("copy", one), ("tuned", tuned), ("other", tensors(4))):
        assert same(up(blocks, name, write(tmp_path / name, weights)), weights), name
    whole, head = blocks.segments("a")[0].bytes, 512
    assert blocks.segments("copy") == blocks.segments("a")
    assert blocks.segments("tuned")[0] == blocks.segments("a")[0]
    assert blocks.segments("tuned")[1].bytes == head
    assert blocks.on_device.used_bytes == blocks.host.used_bytes == 2 * whole + head
    blocks.close("a"), blocks.lower("copy")
    assert blocks.on_device.used_bytes == 2 * whole + head, "the fine-tune still uses it"
    blocks.close("tuned"), blocks.close("copy")
    assert blocks.on_device.used_bytes == blocks.host.used_bytes == whole
    blocks.close("other")
    assert blocks.on_device.used_bytes == blocks.host.used_bytes == 0


def test_equal_samples_with_other_bytes_between_are_not_shared(tmp_path: Path) -> None:
    blocks = made()
    one = tensors(5)
    changed = {name: tensor.clone() for name, tensor in one.items()}
    changed["words"][100] += 1
    up(blocks, "a", write(tmp_path / "a", one))
    assert same(up(blocks, "b", write(tmp_path / "b", changed)), changed)
    assert not set(blocks.segments("a")) & set(blocks.segments("b"))
    blocks.close("a"), blocks.close("b")
    assert blocks.host.used_bytes == 0


def test_salts_and_the_setting_keep_models_apart(tmp_path: Path) -> None:
    for share, salts in ((True, ("x", "y")), (False, ("", ""))):
        blocks = made(share=share)
        for name, salt in zip("ab", salts, strict=True):
            up(blocks, name, write(tmp_path / name, tensors(6), salt=salt))
        assert blocks.segments("a") != blocks.segments("b")


def test_no_hole_is_told_and_neighbours_are_named(tmp_path: Path) -> None:
    size = made().prepare("x", write(tmp_path / "x", tensors(0)))[0].bytes
    blocks = made(device=3 * size, share=False)
    for seed, name in enumerate("abc"):
        up(blocks, name, write(tmp_path / name, tensors(seed)))
    big = write(tmp_path / "big", tensors(9, rows=900))
    blocks.prepare("big", big)
    views = blocks.open("big", big, tmp_path / "big")
    blocks.lower("b")
    with pytest.raises(NoRun) as refused:
        blocks.lift("big")
    busy = {"c"}
    victims = blocks.neighbours(Tier.DEVICE, refused.value.bytes, lambda users, n: None if users & busy else n)
    assert victims == {"a"}
    blocks.lower("a")
    blocks.lift("big")
    assert same(dict(views), tensors(9, rows=900))


def test_without_room_in_ram_a_model_passes_through_it(tmp_path: Path) -> None:
    blocks = made(host=0)
    manifest = write(tmp_path, tensors(7))
    blocks.prepare("a", manifest)
    with pytest.raises(NoRun):
        blocks.read("a", manifest)
    views = blocks.open("a", manifest, tmp_path)
    assert not blocks.is_in_ram("a")
    blocks.lift("a")
    assert same(dict(views), tensors(7))
    assert blocks.host.used_bytes == 0
    blocks.close("a")
    assert blocks.on_device.used_bytes == 0


class Meddler(ThreadPoolExecutor):
    """Readers beside whom somebody writes the file."""

    def __init__(self, path: Path, times: int) -> None:
        super().__init__(1)
        self.path = path
        self.times = times

    def submit(self, *call, **named):
        if self.times:
            self.times -= 1
            save_file(tensors(self.times), self.path)
        return super().submit(*call, **named)


@pytest.mark.parametrize("times", [2, 3])
def test_files_that_change_while_being_read_are_read_again_and_refused_in_the_end(tmp_path: Path, times: int) -> None:
    blocks = made()
    manifest = write(tmp_path, tensors(8))
    blocks._readers = Meddler(tmp_path / "model.safetensors", times)
    blocks.prepare("a", manifest)
    if times == 3:
        with pytest.raises(BadArchive, match="keep changing"):
            blocks.open("a", manifest, tmp_path)
        assert (blocks.segments("a"), blocks.host.used_bytes) == ([], 0)
    else:
        assert same(dict(blocks.open("a", manifest, tmp_path)), tensors(0))


def test_nobody_writes_into_a_place_in_ram_once_reading_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, read, ended = made(), reading._read, []
    manifest = write(tmp_path, tensors(1))

    def slow(*piece: object) -> None:
        time.sleep(0.05)
        read(*piece)  # type: ignore[arg-type]
        ended.append(piece)

    def broken(*given: object) -> None:
        raise RuntimeError("no conversion")

    monkeypatch.setattr(reading, "_read", slow)
    monkeypatch.setattr(reading.Source, "_convert", broken)
    blocks.prepare("a", manifest)
    with pytest.raises(RuntimeError, match="no conversion"):
        blocks.read("a", manifest)
    assert (len(ended), blocks.host.used_bytes) == (1, 0)


def test_many_threads_rising_and_sinking_sharers_leave_nothing_wrong(tmp_path: Path) -> None:
    blocks = made(speed="1GB")
    expected = {}
    for number in range(6):
        weights = {**tensors(number % 2), "head": torch.full((2, 64), float(number))}
        expected[f"m{number}"] = weights
        assert same(up(blocks, f"m{number}", write(tmp_path / str(number), weights)), weights)
        blocks.lower(f"m{number}")

    def play(name: str) -> None:
        views = blocks._models[name].views
        for step in range(20):
            blocks.lift(name)
            assert same(dict(views), expected[name]), (name, step)
            blocks.lower(name)
            if random.random() < 0.2:
                up(blocks, name, Manifest("folder", str(tmp_path / name[1:])))
                views = blocks._models[name].views
                assert same(dict(views), expected[name])
                blocks.lower(name)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(play, expected))
    assert blocks.on_device.used_bytes == 0
    for name in expected:
        blocks.close(name)
    assert (blocks.host.used_bytes, blocks._prints.blocks, blocks._blocks) == (0, {}, {})


def test_copies_that_load_at_the_same_moment_are_one_block_whoever_reads_first(tmp_path: Path) -> None:
    blocks = made()
    manifests = {name: write(tmp_path / name, tensors(3)) for name in "abc"}
    for order in itertools.permutations("abc"):
        for name in "abc":
            blocks.prepare(name, manifests[name])
        assert len({tuple(blocks.segments(name)) for name in "abc"}) == 1, "no place is wanted twice"
        for name in order:
            blocks.read(name, manifests[name])
        for name in "abc":
            assert same(dict(blocks.open(name, manifests[name], tmp_path / name)), tensors(3))
            blocks.lift(name)
        whole = blocks.segments("a")[0].bytes
        assert (blocks.host.used_bytes, blocks.on_device.used_bytes) == (whole, whole)
        for name in order:
            blocks.close(name)
        assert (blocks.host.used_bytes, blocks._prints.blocks, blocks._blocks) == (0, {}, {})


def test_copies_that_are_read_on_several_threads_at_once_are_one_block(tmp_path: Path) -> None:
    blocks = made()
    names = [f"m{number}" for number in range(8)]
    for name in names:
        write(tmp_path / name, tensors(3))
    together = Barrier(len(names))

    def rise(name: str) -> dict[str, torch.Tensor]:
        together.wait()
        return up(blocks, name, Manifest("folder", str(tmp_path / name)))

    with ThreadPoolExecutor(len(names)) as pool:
        assert all(same(got, tensors(3)) for got in pool.map(rise, names))
    assert len({tuple(blocks.segments(name)) for name in names}) == 1
    assert blocks.host.used_bytes == blocks.on_device.used_bytes == blocks.segments("m0")[0].bytes
    for name in names:
        blocks.close(name)
    assert (blocks.host.used_bytes, blocks._prints.blocks, blocks._blocks) == (0, {}, {})


def test_a_copy_comes_up_alone_when_the_one_that_it_met_gives_up(tmp_path: Path) -> None:
    blocks = made()
    for name in "ab":
        blocks.prepare(name, write(tmp_path / name, tensors(3)))
    blocks.close("a")
    got = dict(blocks.open("b", Manifest("folder", str(tmp_path / "b")), tmp_path / "b"))
    assert same(got, tensors(3))
    assert same(up(blocks, "a", Manifest("folder", str(tmp_path / "a"))), tensors(3))
    assert blocks.segments("a") == blocks.segments("b"), "and is met again"


def test_one_that_only_passes_through_ram_leaves_the_place_there_to_the_copy_that_stays(tmp_path: Path) -> None:
    blocks = made()
    manifests = {name: write(tmp_path / name, tensors(3)) for name in "ab"}
    for name in "ab":
        blocks.prepare(name, manifests[name])
    blocks.read("a", manifests["a"], keep=False)
    blocks.read("b", manifests["b"])
    assert (blocks.is_in_ram("a"), blocks.is_in_ram("b")) == (False, True)
    for name in "ab":
        views = blocks.open(name, manifests[name], tmp_path / name)
        blocks.lift(name)
        assert same(dict(views), tensors(3))
    blocks.close("a"), blocks.close("b")
    assert (blocks.host.used_bytes, blocks.on_device.used_bytes, blocks._blocks) == (0, 0, {})


@pytest.mark.parametrize("first", "ab")
def test_models_that_only_look_alike_part_whichever_is_read_first(first: str, tmp_path: Path) -> None:
    blocks = made()
    weights = {"a": tensors(5), "b": {name: tensor.clone() for name, tensor in tensors(5).items()}}
    weights["b"]["words"][100] += 1
    manifests = {name: write(tmp_path / name, weights[name]) for name in "ab"}
    for name in "ab":
        blocks.prepare(name, manifests[name])
    for name in (first, *({"a", "b"} - {first})):
        blocks.read(name, manifests[name])
    for name in "ab":
        assert same(dict(blocks.open(name, manifests[name], tmp_path / name)), weights[name])
    assert not set(blocks.segments("a")) & set(blocks.segments("b"))
    blocks.close("a"), blocks.close("b")
    assert (blocks.host.used_bytes, blocks._prints.blocks, blocks._blocks) == (0, {}, {})


def test_a_fine_tune_that_is_read_before_the_one_it_met_has_its_own(tmp_path: Path) -> None:
    blocks = made()
    weights = {"a": tensors(3), "tuned": {**tensors(3), "head": torch.ones(2, 64)}}
    manifests = {name: write(tmp_path / name, weights[name]) for name in weights}
    for name in weights:
        blocks.prepare(name, manifests[name])
    for name in ("tuned", "a"):
        blocks.read(name, manifests[name])
    for name in weights:
        assert same(dict(blocks.open(name, manifests[name], tmp_path / name)), weights[name])


class BlocksMachine(RuleBasedStateMachine):
    """Copies, fine-tunes and models that only look alike come and go in any order: each always has its own weights."""

    NAMES = ("a", "b", "c", "d", "e")

    @initialize()
    def start(self) -> None:
        self.blocks = made()
        self.expected: dict[str, dict[str, torch.Tensor]] = {}
        self.views: dict[str, Views] = {}
        self.up: set[str] = set()
        self.root = Path(tempfile.mkdtemp())
        self.written_ns = 10**18

    def teardown(self) -> None:
        for name in self.NAMES:
            self.blocks.close(name)
        assert (self.blocks.host.used_bytes, self.blocks.on_device.used_bytes) == (0, 0)
        assert (self.blocks._prints.blocks, self.blocks._blocks) == ({}, {})
        shutil.rmtree(self.root)

    def forget(self, name: str) -> None:
        self.views.pop(name, None)
        self.up.discard(name)

    @rule(name=st.sampled_from(NAMES), trunk=st.integers(0, 1), head=st.integers(0, 1), nearly=st.booleans())
    def prepare(self, name: str, trunk: int, head: int, nearly: bool) -> None:
        weights = {**tensors(trunk), "head": torch.full((2, 64), float(head))}
        if nearly:
            weights["words"][100] += 1
        self.forget(name)
        self.expected[name] = weights
        manifest = write(self.root / name, weights)
        self.written_ns += 1  # long ago, so that nobody waits for who may be writing on, and never twice
        os.utime(self.root / name / "model.safetensors", ns=(self.written_ns, self.written_ns))
        self.blocks.prepare(name, manifest)

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), keep=st.booleans())
    def read(self, data: st.DataObject, keep: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.expected.keys() - self.views.keys() or {"a"})))
        if name in self.expected and name not in self.views:
            manifest = Manifest("folder", str(self.root / name))
            self.blocks.read(name, manifest, keep=keep)
            self.views[name] = self.blocks.open(name, manifest, self.root / name)
            assert same(dict(self.views[name]), self.expected[name])
            self.blocks.lift(name)
            self.up.add(name)

    @precondition(lambda self: self.up)
    @rule(data=st.data(), host_too=st.booleans())
    def sink(self, data: st.DataObject, host_too: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.up)))
        self.up.discard(name)
        if host_too or not self.blocks.is_in_ram(name):
            self.blocks.close(name)
            del self.views[name], self.expected[name]
        else:
            self.blocks.lower(name)

    @precondition(lambda self: self.views.keys() - self.up)
    @rule(data=st.data())
    def rise(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.views.keys() - self.up)))
        self.blocks.lift(name)
        self.up.add(name)

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.expected)))
        self.blocks.close(name)
        self.forget(name)
        del self.expected[name]

    @invariant()
    def every_model_has_its_own_weights(self) -> None:
        for name in self.up:
            assert same(dict(self.views[name]), self.expected[name]), name

    @invariant()
    def every_block_is_wanted_and_counted_once(self) -> None:
        there = self.blocks._blocks
        assert all(block.host_users or block.device_users for block in there.values())
        assert {id(block) for block in self.blocks._prints.blocks.values()} <= {id(block) for block in there.values()}
        placed = sum(block.layout.bytes for block in there.values() if block.place is not None)
        assert self.blocks.host.used_bytes == placed
        lifted = sum(block.layout.bytes for block in there.values() if block.device is not None)
        assert self.blocks.on_device.used_bytes == lifted
        named = {segment.id for name in self.expected for segment in self.blocks.segments(name)}
        assert named == there.keys()


TestBlocksMachine = BlocksMachine.TestCase
TestBlocksMachine.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
