import gc
import os
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from safetensors.torch import save_file

from container.archive.manifest import Manifest
from container.memory.known import Known
from container.memory.ledger import Ledger, Segment, Tier
from container.memory.likeness import LEAST_BYTES, fingerprints, same_bytes
from container.memory.sharing import Sharing, segments
from container.memory.weights import WeightMap, open_weights

TRUNK_BYTES = 2 * 100_000


def checkpoint(trunk: int = 0, head: int = 0, head_floats: int = 100) -> dict[str, torch.Tensor]:
    """A trunk of two tensors (200 KB) and a head; equal seeds give equal tensors."""
    body, top = torch.Generator().manual_seed(trunk), torch.Generator().manual_seed(1000 + head)
    return {
        "embed": torch.randn(250, 100, generator=body),
        "layer.weight": torch.randn(250, 100, generator=body),
        "layer.bias": torch.zeros(250),
        "head": torch.randn(head_floats, generator=top),
    }


@pytest.fixture
def folders(tmp_path):
    def write(name: str, tensors: dict[str, torch.Tensor]) -> Path:
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        return tmp_path / name

    return write


def same(weights: WeightMap, expected: dict[str, torch.Tensor]) -> bool:
    return weights.keys() == expected.keys() and all(same_bytes(weights[n], expected[n]) for n in expected)


def mappings(text: str) -> int:
    return sum(text in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_two_copies_become_one_block_and_let_their_files_go(folders):
    sharing = Sharing()
    a, b = open_weights(folders("a", checkpoint())), open_weights(folders("b", checkpoint()))
    assert sharing.join("a", a) == {}
    changed = sharing.join("b", b)
    nbytes = a.shared[0].bytes
    assert changed == {
        "a": [Segment("shared:1", nbytes), Segment("a", 0)],
        "b": [Segment("shared:1", nbytes), Segment("b", 0)],
    }
    assert same(a, checkpoint())
    assert same(b, checkpoint())
    assert all(a[name].data_ptr() == b[name].data_ptr() for name in a)
    assert (mappings("model.safetensors"), mappings("memfd:berth-weights")) == (0, 1)


def test_a_further_copy_has_no_table_of_tensors_of_its_own(folders):
    """What one more copy costs beside its weights is a few objects, however many tensors it has."""
    sharing = Sharing()
    tensors = {f"layer.{number}": torch.randn(100, generator=torch.Generator().manual_seed(7)) for number in range(500)}
    copies = [open_weights(folders(f"copy-{number}", tensors)) for number in range(6)]
    for number, copy in enumerate(copies[:3]):
        sharing.join(f"copy-{number}", copy)
    gc.collect()
    tracemalloc.start()
    try:
        for number, copy in enumerate(copies[3:], 3):
            sharing.join(f"copy-{number}", copy)
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(same(copy, tensors) for copy in copies)
    assert grown < 3 * (500 * 16 + 4_000)  # what was sampled is kept for the next time, 16 bytes a tensor


def test_fine_tunes_share_the_trunk_and_keep_their_heads(folders):
    sharing = Sharing()
    maps = {f"m{i}": open_weights(folders(f"m{i}", checkpoint(head=i))) for i in range(5)}
    for name, weights in maps.items():
        sharing.join(name, weights)
    for i, weights in enumerate(maps.values()):
        assert same(weights, checkpoint(head=i))
        assert [part.id for part in weights.shared] == ["shared:1"]
        assert weights.own_bytes == 512
    assert len({weights["embed"].data_ptr() for weights in maps.values()}) == 1
    assert mappings("model.safetensors") == 0


def test_a_large_head_stays_in_its_file(folders):
    sharing = Sharing()
    a = open_weights(folders("a", checkpoint(head=1, head_floats=60_000)))
    b = open_weights(folders("b", checkpoint(head=2, head_floats=60_000)))
    sharing.join("a", a)
    assert sharing.join("b", b)["b"] == [Segment("shared:1", a.shared[0].bytes), Segment("b", 240_000)]
    assert same(b, checkpoint(head=2, head_floats=60_000))
    assert mappings("model.safetensors") == 2


def test_different_models_share_nothing(folders):
    sharing = Sharing()
    a, b = open_weights(folders("a", checkpoint(trunk=1))), open_weights(folders("b", checkpoint(trunk=2, head=1)))
    assert sharing.join("a", a) == {}
    assert sharing.join("b", b) == {}
    assert (a.shared, b.shared) == ((), ())


def test_too_little_in_common_is_left_alone(folders):
    small = {"w": torch.ones(LEAST_BYTES // 4 - 1)}
    sharing = Sharing()
    sharing.join("a", open_weights(folders("a", small)))
    assert sharing.join("b", open_weights(folders("b", small))) == {}


def test_models_of_another_salt_never_share(folders):
    sharing = Sharing()
    a, b, c = (open_weights(folders(name, checkpoint())) for name in "abc")
    sharing.join("a", a, salt="bank")
    assert sharing.join("b", b) == {}
    assert set(sharing.join("c", c, salt="bank")) == {"a", "c"}


def test_tensors_that_differ_only_between_the_samples_are_not_shared(folders):
    nearly = checkpoint()
    nearly["embed"][60, 0] += 1e-3
    assert fingerprints(nearly)["embed"] == fingerprints(checkpoint())["embed"]
    sharing = Sharing()
    a, b = open_weights(folders("a", checkpoint())), open_weights(folders("b", nearly))
    sharing.join("a", a)
    changed = sharing.join("b", b)
    assert same(a, checkpoint())
    assert same(b, nearly)
    assert a["embed"].data_ptr() != b["embed"].data_ptr()
    assert a["layer.weight"].data_ptr() == b["layer.weight"].data_ptr()
    assert [s.id for s in changed["b"]] == ["shared:1", "b"]


def test_a_twin_inside_the_partner_that_only_looks_equal_keeps_its_bytes(folders):
    """Two tensors of one model with one fingerprint and different bytes; one of them is found in another model."""
    twins = {"one": checkpoint()["embed"], "two": checkpoint()["embed"].clone()}
    twins["two"][60, 0] += 1e-3
    sharing = Sharing()
    a, b = open_weights(folders("a", twins)), open_weights(folders("b", {"one": twins["one"]}))
    c, d = open_weights(folders("c", twins)), open_weights(folders("d", {"two": twins["two"]}))
    for name, weights in {"a": a, "b": b, "c": c, "d": d}.items():
        sharing.join(name, weights)
    assert same(a, twins)
    assert same(b, {"one": twins["one"]})
    assert same(c, twins)
    assert same(d, {"two": twins["two"]})


def test_a_partner_whose_twins_only_look_equal_is_compared_again_when_it_rises(folders):
    twins = {"one": checkpoint()["embed"], "two": checkpoint()["embed"].clone()}
    twins["two"][60, 0] += 1e-3
    sharing = Sharing()
    home = folders("a", twins)
    a, b = open_weights(home), open_weights(folders("b", {"w": twins["two"]}))
    sharing.join("a", a)
    sharing.join("b", b)
    a.close()
    again = open_weights(home)
    sharing.recall(again)
    assert same(again, twins)
    sharing.join("a", again)
    assert same(again, twins)


def test_a_model_that_matched_a_block_only_in_part_is_compared_again_when_it_rises(folders):
    nearly = checkpoint()
    nearly["embed"][60, 0] += 1e-3
    sharing = Sharing()
    a, b = open_weights(folders("a", checkpoint())), open_weights(folders("b", checkpoint()))
    home = folders("c", nearly)
    c = open_weights(home)
    for name, weights in {"a": a, "b": b, "c": c}.items():
        sharing.join(name, weights)
    assert [part.id for part in c.shared] == ["shared:1"]
    c.close()
    again = open_weights(home)
    assert not sharing.recall(again)
    sharing.join("c", again)
    assert same(again, nearly)


def test_zero_and_minus_zero_differ_and_nan_equals_itself():
    assert not same_bytes(torch.zeros(3), -torch.zeros(3))
    assert same_bytes(torch.full((3,), torch.nan), torch.full((3,), torch.nan))
    assert not same_bytes(torch.zeros(2, dtype=torch.float32), torch.zeros(2, dtype=torch.int32))
    assert not same_bytes(torch.zeros(2, 3), torch.zeros(3, 2))


def overwritten(folder):
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 1000)


def truncated(folder):
    os.truncate(folder / "model.safetensors", 10)


@pytest.mark.parametrize("harm", [overwritten, truncated, shutil.rmtree])
def test_what_is_shared_cannot_be_harmed_through_a_file(folders, harm):
    sharing = Sharing()
    home = folders("a", checkpoint(head=1))
    a, b = open_weights(home), open_weights(folders("b", checkpoint(head=2)))
    sharing.join("a", a)
    sharing.join("b", b)
    harm(home)
    a.check()
    assert same(a, checkpoint(head=1))
    assert same(b, checkpoint(head=2))


def test_what_will_be_shared_is_expected_before_it_is_reserved(folders):
    sharing = Sharing()
    a, b, c = (open_weights(folders(f"m{i}", checkpoint(head=i))) for i in range(3))
    assert sharing.expect(a) == a.own_bytes
    sharing.join("a", a)
    assert sharing.expect(b) == 400, "the head, beside a model that has the trunk for itself"
    assert sharing.expect(b, salt="bank") == b.own_bytes
    sharing.join("b", b)
    assert sharing.expect(c) == 400, "the head, beside a block"


def test_what_opens_while_others_are_compared_is_met_by_those_after_it(folders, tmp_path):
    known = Known("cpu", allow_pickle=False, share=True)
    for name in "ab":
        folders(name, checkpoint())
    with known._sharing._lock:  # a long comparing of others
        booked = [known.prepare(name, Manifest("folder", str(tmp_path / name))) for name in "ab"]
    assert booked[0][0].bytes > TRUNK_BYTES
    assert booked[1] == [Segment("b", 0)]


def test_what_was_closed_is_forgotten_though_nothing_ever_joins(folders, tmp_path):
    known = Known("cpu", allow_pickle=False, share=True)
    for number in range(5):
        folders(f"m{number}", checkpoint(trunk=number))
        known.prepare(f"m{number}", Manifest("folder", str(tmp_path / f"m{number}")))
        known.close(f"m{number}")
    assert (len(known._sharing._members), len(known._sharing._owners)) == (1, 4), "the last one's, till the next comes"


def test_copies_that_open_at_the_same_moment_are_expected_once_and_become_one(tmp_path):
    """Whoever opens first has it all; the others meet it before it has joined, and no join is left out of the books."""
    names = [f"m{number}" for number in range(8)]
    for name in names:
        (tmp_path / name).mkdir()
        save_file(checkpoint(), tmp_path / name / "model.safetensors")
    for _ in range(5):
        known = Known("cpu", allow_pickle=False, share=True)
        together = Barrier(len(names))

        def prepare(name: str, known: Known = known, together: Barrier = together) -> int:
            together.wait()
            return sum(segment.bytes for segment in known.prepare(name, Manifest("folder", str(tmp_path / name))))

        with ThreadPoolExecutor(len(names)) as loaders:
            booked = sorted(loaders.map(prepare, names))
        assert (sum(booked[:-1]), booked[-1] > TRUNK_BYTES) == (0, True), booked
        assert sum(known.is_whole(name) for name in names) == 1
        told = set().union(*(known.join(name) for name in names))
        assert told == set(names), "the first one's segments are others now, too"
        assert len({known.segments(name)[0] for name in names}) == 1
        assert all(known.segments(name)[1].bytes == 0 for name in names)
        for name in names:
            known.close(name)


def test_the_block_goes_with_its_last_user(folders):
    sharing = Sharing()
    a, b = open_weights(folders("a", checkpoint())), open_weights(folders("b", checkpoint()))
    sharing.join("a", a)
    sharing.join("b", b)
    a.close()
    assert same(b, checkpoint())
    b.close()
    gc.collect()
    assert mappings("memfd:berth-weights") == 0
    c = open_weights(folders("c", checkpoint()))
    assert sharing.join("c", c) == {}, "nobody is up to share with"


def test_a_model_that_rises_again_is_bound_without_comparing(folders, monkeypatch):
    sharing = Sharing()
    home = folders("a", checkpoint(head=1))
    a, b = open_weights(home), open_weights(folders("b", checkpoint(head=2)))
    sharing.join("a", a)
    sharing.join("b", b)
    a.close()
    again = open_weights(home)
    monkeypatch.setattr("container.memory.sharing.same_bytes", None)
    assert sharing.recall(again)
    assert segments("a", again) == [Segment("shared:1", b.shared[0].bytes), Segment("a", 512)]
    assert same(again, checkpoint(head=1))


def test_a_changed_file_is_compared_again_before_it_is_bound(folders):
    sharing = Sharing()
    home = folders("a", checkpoint())
    a, b = open_weights(home), open_weights(folders("b", checkpoint()))
    sharing.join("a", a)
    sharing.join("b", b)
    a.close()
    changed = checkpoint()
    changed["embed"][60, 0] += 1
    save_file(changed, home / "model.safetensors")
    again = open_weights(home)
    assert not sharing.recall(again)
    sharing.join("a", again)
    assert same(again, changed)
    assert same(b, checkpoint())


def test_a_map_that_closes_while_others_join_is_left_out(folders):
    sharing = Sharing()
    a, b = open_weights(folders("a", checkpoint())), open_weights(folders("b", checkpoint()))
    sharing.join("a", a)
    a.close()
    assert sharing.join("b", b) == {}
    assert not sharing.recall(a)
    assert same(b, checkpoint())


def test_a_third_model_may_share_with_two_blocks(folders):
    sharing = Sharing()
    one, two = checkpoint(trunk=1), checkpoint(trunk=2)
    both = {"embed": one["embed"], "other": two["layer.weight"], "new": torch.randn(9)}
    maps = {}
    for name, tensors in {"a": one, "b": one, "c": two, "d": two, "e": both}.items():
        maps[name] = open_weights(folders(name, tensors))
        sharing.join(name, maps[name])
    assert {part.id for part in maps["e"].shared} == {"shared:1", "shared:2"}
    assert same(maps["e"], both)


def test_widened_halves_are_shared_too(folders):
    halves = {name: tensor.half() for name, tensor in checkpoint().items()}
    sharing = Sharing()
    a, b = open_weights(folders("a", halves)), open_weights(folders("b", halves))
    sharing.join("a", a)
    sharing.join("b", b)
    assert a["embed"].data_ptr() == b["embed"].data_ptr()
    assert (a.own_bytes, b.own_bytes) == (0, 0)
    assert same(b, {name: tensor.float() for name, tensor in halves.items()})


def test_no_memory_for_a_block_leaves_both_as_they_were(folders, monkeypatch):
    def full(tensors):
        raise OSError(28, "No space left on device")

    sharing = Sharing()
    a, b = open_weights(folders("a", checkpoint())), open_weights(folders("b", checkpoint()))
    sharing.join("a", a)
    monkeypatch.setattr("container.memory.sealed.copy", full)
    assert sharing.join("b", b) == {}
    assert same(a, checkpoint())
    assert same(b, checkpoint())


class SharingMachine(RuleBasedStateMachine):
    """Models of three trunks come, join, sink and rise in any order: every one always has its own weights."""

    @initialize()
    def start(self):
        import tempfile

        self.root = Path(tempfile.mkdtemp())
        self.sharing = Sharing()
        self.ledger = Ledger({Tier.DEVICE: 1 << 30})
        self.expected: dict[str, dict[str, torch.Tensor]] = {}
        self.maps: dict[str, WeightMap] = {}

    def teardown(self):
        self.maps.clear()
        if mappings("memfd:berth-weights"):  # half a second on this heap, which is nothing to spend on every example
            gc.collect()
        assert mappings("memfd:berth-weights") == 0
        shutil.rmtree(self.root)

    @rule(trunk=st.integers(0, 2), head=st.integers(0, 2), nearly=st.booleans())
    def register(self, trunk, head, nearly):
        if len(self.expected) == 8:
            return
        tensors = checkpoint(trunk, head)
        if nearly:
            tensors["embed"][60, head] += 1
        name = f"m{len(self.expected)}"
        (self.root / name).mkdir()
        save_file(tensors, self.root / name / "model.safetensors")
        self.expected[name] = tensors
        self.ledger.add(name, [Segment(name, sum(t.nbytes for t in tensors.values()))])

    @precondition(lambda self: len(self.maps) < len(self.expected))
    @rule(data=st.data(), how=st.sampled_from(["alone", "recall", "meet"]))
    def rise(self, data, how):
        name = data.draw(st.sampled_from(sorted(self.expected.keys() - self.maps.keys())))
        self.ledger.reserve(name, Tier.DEVICE)
        weights = self.maps[name] = open_weights(self.root / name, quiet_s=0)
        if how == "recall":
            self.sharing.recall(weights)
        elif how == "meet":
            self.sharing.meet(name, weights)
        self.ledger.recut(name, segments(name, weights))
        self.ledger.commit(name, Tier.DEVICE)

    @precondition(lambda self: self.maps)
    @rule(data=st.data())
    def join(self, data):
        name = data.draw(st.sampled_from(sorted(self.maps)))
        for changed, parts in self.sharing.join(name, self.maps[name]).items():
            self.ledger.recut(changed, parts)

    @precondition(lambda self: self.maps)
    @rule(data=st.data())
    def sink(self, data):
        name = data.draw(st.sampled_from(sorted(self.maps)))
        self.ledger.demote(name, Tier.DEVICE)
        self.maps.pop(name).close()
        self.ledger.release(name, Tier.DEVICE)

    @invariant()
    def every_model_has_its_own_weights(self):
        for name, weights in self.maps.items():
            assert same(weights, self.expected[name])

    @invariant()
    def the_ledger_has_each_block_once(self):
        self.ledger.check()
        blocks = {part.id: part.bytes for weights in self.maps.values() for part in weights.shared}
        own = sum(weights.own_bytes for weights in self.maps.values())
        assert self.ledger.figures(Tier.DEVICE).used == own + sum(blocks.values())
        assert mappings("memfd:berth-weights") == len(blocks)


TestSharingMachine = SharingMachine.TestCase
TestSharingMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
