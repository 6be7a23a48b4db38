"""Weights that are read past the page cache: the right bytes, in memory that is booked, handed on and given back."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from safetensors.torch import save_file

from bench.disk import forget_cached
from container.archive.manifest import Berth, Manifest
from container.memory import known
from container.memory.known import Known
from container.memory.mapped import WeightsChanged
from container.memory.pages import PIECE_BYTES
from container.memory.pieces import Pieces
from container.memory.sharing import Sharing
from container.memory.weights import WeightMap, open_weights
from tests.makers import anonymous_bytes, cached

#: So many whole pieces and a bit: samples of the ends of tensors bring some of that into the page cache, not most.
WHOLE = 5
NUMBERS = (WHOLE * PIECE_BYTES + (1 << 20)) // 4


def numbers(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(NUMBERS // 2, generator=generator) for name in ("head", "trunk")}


def model(folder: Path, seed: int) -> Path:
    """A checkpoint that the page cache does not have."""
    folder.mkdir(exist_ok=True)
    save_file(numbers(seed), folder / "model.safetensors")
    forget_cached(folder / "model.safetensors")
    return folder


def read(weights: WeightMap, pieces: Pieces, parts: int = 2) -> None:
    with ThreadPoolExecutor(parts) as threads:
        list(threads.map(lambda part: weights.read_ahead(part, parts, pieces), range(parts)))


def right(weights: WeightMap, seed: int) -> bool:
    expected = numbers(seed)
    return weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)


def reads_past(folder: Path) -> bool:
    """Whether files there can be; where they cannot, everything else must be the same."""
    try:
        os.close(os.open(folder / "model.safetensors", os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_what_is_read_past_the_page_cache_is_the_file_and_is_not_in_the_page_cache(on_disk: Path, parts: int) -> None:
    weights = open_weights(model(on_disk / "m", 1))
    assert weights.mapped_bytes == weights.own_bytes == NUMBERS * 4
    before = anonymous_bytes()
    read(weights, Pieces(), parts)
    if reads_past(on_disk / "m"):
        there = cached(on_disk / "m/model.safetensors")
        assert sum(there) < len(there) // 4, "but for the header, and where it was looked whether it is there"
        assert weights.mapped_bytes == 0
        assert anonymous_bytes() - before > NUMBERS * 4 - (1 << 20)
    assert weights.own_bytes == NUMBERS * 4
    assert right(weights, 1)
    before = anonymous_bytes()
    weights.close()
    if reads_past(on_disk / "m"):
        assert before - anonymous_bytes() > NUMBERS * 4 - (1 << 20)


def test_what_a_model_leaves_goes_to_the_next_as_far_as_it_is_expected(on_disk: Path) -> None:
    one, two = open_weights(model(on_disk / "1", 1)), open_weights(model(on_disk / "2", 2))
    past, pieces = reads_past(on_disk / "1"), Pieces()
    read(one, pieces)
    pieces.expect(two.mapped_bytes)
    one.close()
    assert pieces.spare_bytes == (WHOLE * PIECE_BYTES if past else 0), "the bit at the end is of no use to others"
    before = anonymous_bytes()
    read(two, pieces)
    assert pieces.spare_bytes == 0
    if past:
        assert anonymous_bytes() - before < PIECE_BYTES
    assert right(two, 2)
    pieces.expect(PIECE_BYTES)
    two.close()
    assert pieces.spare_bytes == (PIECE_BYTES if past else 0), "no more than is expected"
    pieces.trim()
    assert pieces.spare_bytes == 0


def test_who_reads_on_from_a_closed_map_keeps_its_bytes_from_those_who_come_up(on_disk: Path) -> None:
    """A comparison, or a batch that looked its tensors up before."""
    pieces = Pieces()
    pieces.expect(1 << 30)
    one = open_weights(model(on_disk / "1", 1))
    read(one, pieces)
    kept = one["trunk"]
    one.close()
    assert pieces.spare_bytes == 0
    two = open_weights(model(on_disk / "2", 2))
    read(two, pieces)
    assert torch.equal(kept, numbers(1)["trunk"])
    assert right(two, 2)
    del kept
    assert pieces.spare_bytes == (WHOLE * PIECE_BYTES if reads_past(on_disk / "1") else 0)


def test_a_file_system_that_refuses_leaves_it_to_the_page_cache(on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "O_DIRECT", os.O_DIRECT | os.O_DIRECTORY)  # as good as EINVAL: it cannot be opened so
    weights = open_weights(model(on_disk / "m", 1))
    read(weights, Pieces())
    assert all(cached(on_disk / "m/model.safetensors"))
    assert weights.mapped_bytes == NUMBERS * 4
    assert right(weights, 1)


def test_what_the_page_cache_has_stays_there(on_disk: Path) -> None:
    save_file(numbers(1), on_disk / "model.safetensors")
    weights = open_weights(on_disk)
    read(weights, Pieces())
    assert weights.mapped_bytes == NUMBERS * 4


def test_another_file_in_the_place_of_the_mapped_one_is_not_read_into_it(on_disk: Path) -> None:
    weights = open_weights(model(on_disk / "m", 1))
    model(on_disk / "other", 2)
    (on_disk / "other/model.safetensors").rename(on_disk / "m/model.safetensors")
    read(weights, Pieces())
    assert right(weights, 1), "it is mapped, whatever its name is now"
    with pytest.raises(WeightsChanged):
        weights.check()


@pytest.mark.parametrize("length", [0, PIECE_BYTES + 5000], ids=["nothing", "a piece and a bit"])
def test_a_file_that_is_cut_before_or_after_it_is_read_costs_the_batch_only(on_disk: Path, length: int) -> None:
    cut_before, cut_after = open_weights(model(on_disk / "1", 1)), open_weights(model(on_disk / "2", 2))
    read(cut_after, Pieces())
    for folder in ("1", "2"):
        os.truncate(on_disk / folder / "model.safetensors", length)
    if reads_past(on_disk / "2"):
        assert right(cut_after, 2), "it is in memory of its own"
    for file in (*cut_before._files, *cut_after._files):
        file.read_ahead(0, 1, Pieces())
        assert file.cover()
        assert file.laid_bytes == 0
    assert not cut_before["head"].any()
    assert not cut_after["trunk"].any()
    for weights in (cut_before, cut_after):
        with pytest.raises(WeightsChanged):
            weights.check()
        weights.close()


def test_models_that_turn_out_equal_are_not_there_three_times(on_disk: Path) -> None:
    """What is copied to be shared lies in memory that the kernel can take: under a limit there is no other."""
    pieces, sharing = Pieces(), Sharing()
    one, two = open_weights(model(on_disk / "1", 1)), open_weights(model(on_disk / "2", 1))
    read(one, pieces)
    files = one._files.copy()
    sharing.join("one", one)
    sharing.join("two", two)
    assert [file.laid_bytes for file in files] == [0]
    assert one.own_bytes == two.own_bytes == 0
    assert right(one, 1)
    assert right(two, 1)


def test_what_a_fine_tune_has_for_itself_stays_in_its_file(on_disk: Path) -> None:
    pieces, sharing = Pieces(), Sharing()
    one, two = open_weights(model(on_disk / "1", 1)), model(on_disk / "2", 2)
    save_file({"head": numbers(2)["head"], "trunk": numbers(1)["trunk"]}, two / "model.safetensors")
    forget_cached(two / "model.safetensors")
    tuned = open_weights(two)
    read(one, pieces)
    read(tuned, pieces)
    sharing.join("one", one)
    sharing.join("tuned", tuned)
    for weights in (one, tuned):
        assert weights.mapped_bytes == weights.own_bytes == NUMBERS * 2
        assert sum(part.bytes for part in weights.shared) == NUMBERS * 2
    assert right(one, 1)
    assert torch.equal(tuned["head"], numbers(2)["head"])
    assert torch.equal(tuned["trunk"], numbers(1)["trunk"])


class Machine:
    """Known models on a machine with so much free."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.known = Known("cpu", allow_pickle=False, share=True, free=lambda: self.free)

    def manifest(self, folder: Path) -> Manifest:
        return Manifest("folder", str(folder), "", settings=Berth())

    def rise(self, name: str, folder: Path) -> None:
        """Come up, for the first time or again."""
        if not self.known.again(name):
            self.known.prepare(name, self.manifest(folder))
        for read in self.known.reads(name, 1, busy=False):
            read()


def test_the_page_cache_is_passed_by_only_where_it_has_no_room_left(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "_LOOK_EVERY_S", 0.0)
    first, second = model(on_disk / "1", 1), model(on_disk / "2", 2)
    machine = Machine(free=3 * NUMBERS * 4)
    machine.rise("a", first)
    assert all(cached(first / "model.safetensors"))
    assert machine.known.mapped_bytes(lambda name: True) == NUMBERS * 4
    machine.free = 2 * NUMBERS * 4  # of which "a", mapped, has one half and "b" needs the other
    machine.rise("b", second)
    if reads_past(second):
        assert machine.known.mapped_bytes(lambda name: True) == NUMBERS * 4


def test_busy_cores_are_spared_where_the_page_cache_takes_what_is_read_and_nowhere_else(on_disk: Path) -> None:
    folder = model(on_disk / "1", 1)
    for free, busy, threads in ((1 << 40, True, 1), (1 << 40, False, 2), (0, True, 2), (0, False, 2)):
        machine = Machine(free)
        machine.known.prepare("m", machine.manifest(folder))
        assert len(machine.known.reads("m", 2, busy)) == threads


def test_memory_of_who_sank_lies_ready_until_who_comes_up_was_read_or_gave_up(on_disk: Path) -> None:
    first, second = model(on_disk / "1", 1), model(on_disk / "2", 2)
    machine, past = Machine(free=0), reads_past(first)
    machine.rise("a", first)
    machine.rise("b", second)
    assert machine.known.rest("a")
    assert machine.known.spare_bytes == 0, "nobody comes up"
    for give_up in (True, False):
        assert machine.known.again("a")
        assert machine.known.rest("b")
        assert machine.known.spare_bytes == (WHOLE * PIECE_BYTES if past else 0)
        if give_up:
            machine.known.rest("a")
            assert machine.known.spare_bytes == 0
            machine.rise("b", second)
    for one in machine.known.reads("a", 1, busy=False):
        one()
    assert machine.known.spare_bytes == 0
    assert right(machine.known.open("a", machine.manifest(first), first), 1)


def test_memory_that_lies_ready_is_given_up_when_somebody_else_needs_it(on_disk: Path) -> None:
    first, second = model(on_disk / "1", 1), model(on_disk / "2", 2)
    machine = Machine(free=0)
    machine.rise("a", first)
    machine.known.prepare("b", machine.manifest(second))
    machine.known.rest("a")
    machine.known.trim()
    assert machine.known.spare_bytes == 0
    for one in machine.known.reads("b", 1, busy=False):
        one()
    assert right(machine.known.open("b", machine.manifest(second), second), 2)


def test_a_copy_of_what_is_up_takes_no_memory_of_its_own_on_its_way(on_disk: Path) -> None:
    first, copy = model(on_disk / "1", 1), model(on_disk / "2", 1)
    machine = Machine(free=0)
    machine.rise("a", first)
    before = anonymous_bytes()
    machine.rise("copy", copy)
    assert anonymous_bytes() - before < 2 << 20
    assert machine.known.spare_bytes == 0


def test_sinking_and_rising_without_room_for_the_page_cache_leaves_memory_and_maps_flat(on_disk: Path) -> None:
    folders = [model(on_disk / str(seed), seed) for seed in range(3)]
    machine = Machine(free=0)
    for turn in range(12):
        if turn == 6:
            before = anonymous_bytes(), len(Path("/proc/self/maps").read_text().splitlines())
        for seed, folder in enumerate(folders):
            machine.rise(f"m{seed}", folder)
            assert right(machine.known.open(f"m{seed}", machine.manifest(folder), folder), seed)
            machine.known.rest(f"m{(seed + 1) % 3}")
    after = anonymous_bytes(), len(Path("/proc/self/maps").read_text().splitlines())
    assert after[0] - before[0] < 4 << 20
    assert after[1] - before[1] < 10


class Hands(RuleBasedStateMachine):
    """Pieces in all hands: none is in two, none that is kept is touched, no more lie ready than are expected."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces, self.most, self.made = Pieces(), 0, 0
        self.held: dict[int, tuple[int, int]] = {}

    @rule(size=st.sampled_from([1, 5000, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES]))
    def take(self, size: int) -> None:
        start = self.pieces.take(size)
        assert start not in self.held
        self.made += 1
        self.held[start] = size, self.made
        ctypes.c_uint32.from_address(start).value = self.made

    @rule(which=st.randoms(use_true_random=False))
    def give(self, which: object) -> None:
        if self.held:
            start = which.choice(sorted(self.held))  # type: ignore[attr-defined]
            self.pieces.give(start, self.held.pop(start)[0])

    @rule(pieces=st.integers(0, 6))
    def expect(self, pieces: int) -> None:
        self.most = pieces
        self.pieces.expect(pieces * PIECE_BYTES + 17)

    @rule()
    def trim(self) -> None:
        self.pieces.trim()
        assert self.pieces.spare_bytes == 0

    @invariant()
    def each_has_what_was_written(self) -> None:
        assert self.pieces.spare_bytes <= self.most * PIECE_BYTES
        for start, (_, number) in self.held.items():
            assert ctypes.c_uint32.from_address(start).value == number

    def teardown(self) -> None:
        self.pieces.expect(0)
        for start, (size, _) in self.held.items():
            self.pieces.give(start, size)


TestHands = Hands.TestCase
