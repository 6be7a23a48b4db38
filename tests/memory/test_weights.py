import gc
import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench.disk import forget_cached
from container.archive.manifest import Berth, Manifest
from container.errors import BadArchive, LargerThanTier
from container.memory import sizes
from container.memory.blocks import Blocks
from container.memory.known import Known
from container.memory.mapped import WeightsChanged
from container.memory.regions import DeviceRegion, HostRegion
from container.memory.sim import SimDevice
from container.memory.weights import WeightsClosed, open_weights
from tests.makers import anonymous_bytes, cached, resident_bytes


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "embed": torch.randn(50, 8, generator=generator),
        "scalar": torch.randn((), generator=generator),
        "ids": torch.arange(7),
        "mask": torch.tensor([True, False, True]),
        "half": torch.randn(3, 4, generator=generator).to(torch.bfloat16),
        "empty": torch.zeros(0, 4),
    }


@pytest.fixture
def folder(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors")
    return tmp_path


def mappings(folder) -> int:
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def same(weights, expected) -> bool:
    return weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)


def test_tensors_are_what_safetensors_wrote(folder):
    weights = open_weights(folder, "")
    expected = tensors()
    expected["half"] = expected["half"].float()
    assert same(weights, expected)
    assert {name: t.dtype for name, t in weights.items()} == {name: t.dtype for name, t in expected.items()}
    assert all(t.is_contiguous() and not t.requires_grad for t in weights.values())


def test_full_precision_is_served_from_the_mapping_and_widened_halves_are_owned(folder):
    weights = open_weights(folder)
    size = (folder / "model.safetensors").stat().st_size
    mapped = weights["embed"].untyped_storage()
    assert mappings(folder) == 1
    assert mapped.data_ptr() == weights["ids"].untyped_storage().data_ptr()
    assert mapped.nbytes() == size
    assert weights["half"].untyped_storage().data_ptr() != mapped.data_ptr()


def test_measured_bytes_are_the_predicted_ones_up_to_alignment(folder):
    weights = open_weights(folder)
    assert sizes.checkpoint_bytes(folder) <= weights.bytes < sizes.checkpoint_bytes(folder) + 256
    halves = open_weights(folder, "bfloat16")
    assert (
        sizes.checkpoint_bytes(folder, "bfloat16") <= halves.bytes < sizes.checkpoint_bytes(folder, "bfloat16") + 1024
    )
    assert {t.dtype for t in halves.values() if t.is_floating_point()} == {torch.bfloat16}
    assert halves["ids"].dtype == torch.int64


def test_an_open_map_keeps_no_descriptor_and_a_closed_one_no_mapping(folder):
    before = descriptors()
    weights = open_weights(folder)
    assert (descriptors(), mappings(folder), weights.is_open) == (before, 1, True)
    weights.close()
    assert (descriptors(), mappings(folder), weights.is_open) == (before, 0, False)


def test_a_tensor_in_use_keeps_the_mapping_until_it_goes(folder):
    weights = open_weights(folder)
    tensor = weights["embed"]
    weights.close()
    assert mappings(folder) == 1
    assert torch.equal(tensor, tensors()["embed"])
    del tensor
    assert mappings(folder) == 0


def test_a_closed_map_answers_nothing_and_opens_again_as_the_same_object(folder):
    weights = open_weights(folder)
    nbytes = weights.bytes
    weights.close()
    for look_up in (lambda: weights["embed"], lambda: list(weights), lambda: len(weights)):
        with pytest.raises(WeightsClosed):
            look_up()
    weights.open()
    assert torch.equal(weights["embed"], tensors()["embed"])
    assert weights.bytes == nbytes


def test_a_thousand_openings_leave_nothing_behind(folder):
    open_weights(folder).close()
    gc.collect()
    before = (descriptors(), mappings(""))
    weights = open_weights(folder)
    for _ in range(1000):
        weights.close()
        weights.open()
    weights.close()
    gc.collect()
    after = (descriptors(), mappings(""))
    assert after[0] == before[0]
    assert after[1] <= before[1] + 3  # the allocator may split or grow an arena of its own


def test_a_write_into_a_tensor_never_reaches_the_file(folder):
    raw = (folder / "model.safetensors").read_bytes()
    weights = open_weights(folder)
    weights["embed"].fill_(0)
    assert (folder / "model.safetensors").read_bytes() == raw
    assert torch.equal(open_weights(folder)["embed"], tensors()["embed"])


def overwritten_in_place(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 0xFF
    with path.open("r+b") as file:
        file.write(raw)
    os.utime(path, ns=(1, 1))


def replaced_by_rename(path):
    shutil.copy2(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def truncated(path):
    os.truncate(path, path.stat().st_size // 2)


def removed(path):
    path.unlink()


@pytest.mark.parametrize("change", [overwritten_in_place, replaced_by_rename, truncated, removed])
def test_a_file_that_changed_is_noticed_before_a_batch_and_at_the_next_opening(folder, change):
    weights = open_weights(folder)
    weights.check()
    change(folder / "model.safetensors")
    with pytest.raises(WeightsChanged, match=r"model\.safetensors"):
        weights.check()
    weights.close()
    with pytest.raises(WeightsChanged, match=r"model\.safetensors"):
        weights.open()
    assert not weights.is_open


def test_a_file_that_only_was_read_has_not_changed(folder):
    weights = open_weights(folder)
    (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").chmod(0o444)
    weights.check()
    (folder / "model.safetensors").chmod(0o644)
    os.utime(folder / "model.safetensors", (1, 1))
    with pytest.raises(WeightsChanged):  # it would have noticed
        weights.check()


def test_tensors_at_odd_addresses_are_copied_and_right(tmp_path):
    floats = torch.arange(6, dtype=torch.float32)
    header = json.dumps(
        {
            "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "floats": {"dtype": "F32", "shape": [2, 3], "data_offsets": [1, 25]},
        }
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + b"\x07" + floats.numpy().tobytes()
    )
    weights = open_weights(tmp_path)
    assert torch.equal(weights["floats"], floats.view(2, 3))
    assert weights["floats"].data_ptr() % 4 == 0
    assert weights["byte"].tolist() == [7]


def test_closing_leaves_alone_what_does_not_lie_in_the_file(tmp_path):
    header = json.dumps({"floats": {"dtype": "F32", "shape": [50_000], "data_offsets": [0, 200_000]}}).encode()
    odd = len(header).to_bytes(8, "little") + header  # the numbers begin at an odd address, and are copied
    assert len(odd) % 4
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "model.safetensors").write_bytes(odd + torch.ones(50_000).numpy().tobytes())
    (tmp_path / "old").mkdir()
    path = tmp_path / "old" / "pytorch_model.bin"
    torch.save({"floats": torch.ones(50_000)}, path, _use_new_zipfile_serialization=False)
    for kind in ("odd", "old"):
        weights = open_weights(tmp_path / kind, allow_pickle=True)
        kept = weights["floats"]
        weights.close()
        assert kept.sum().item() == 50_000


def test_shards_are_one_map(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.zeros(4)}, tmp_path / "model-2.safetensors")
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    weights = open_weights(tmp_path)
    assert same(weights, {"a": torch.ones(3), "b": torch.zeros(4)})
    assert (weights.bytes, mappings(tmp_path)) == (28, 2)
    removed(tmp_path / "model-2.safetensors")
    with pytest.raises(WeightsChanged, match=r"model-2\.safetensors"):
        weights.check()


def test_a_lying_header_is_refused_before_anything_is_mapped(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(BadArchive, match="cut off"):
        open_weights(tmp_path)
    assert mappings(tmp_path) == 0


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickled_state_dict_is_served_when_pickles_are_allowed(tmp_path, new_format):
    shared = torch.randn(5, 2)
    state = {"wte": shared, "lm_head": shared, "norm": torch.nn.Parameter(torch.ones(3)), "half": torch.ones(2).half()}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
    weights = open_weights(tmp_path, allow_pickle=True)
    assert same(weights, {"wte": shared, "lm_head": shared, "norm": torch.ones(3), "half": torch.ones(2)})
    assert weights["wte"].data_ptr() == weights["lm_head"].data_ptr()
    assert weights.bytes == 40 + 12 + 256
    assert not weights["norm"].requires_grad
    assert mappings(tmp_path) == int(new_format)
    weights.close()
    assert mappings(tmp_path) == 0


def test_a_checkpoint_of_a_training_run_gives_its_state_dict(tmp_path):
    torch.save({"epoch": 3, "state_dict": {"a": torch.ones(2)}}, tmp_path / "last.ckpt")
    assert same(open_weights(tmp_path, allow_pickle=True), {"a": torch.ones(2)})


def test_pickles_are_refused_where_they_are_not_allowed(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BadArchive, match="BERTH_ALLOW_PICKLE is off"):
        open_weights(tmp_path)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def whole_module(path):
    torch.save(torch.nn.Linear(2, 2), path)


def bomb(path):
    torch.save({"a": Bomb()}, path)


def plain_pickle_bomb(path):
    path.write_bytes(pickle.dumps({"a": Bomb()}, protocol=2))


def text(path):
    path.write_text("version https://git-lfs.github.com/spec/v1")


def nothing(path):
    path.write_bytes(b"")


def broken_zip(path):
    path.write_bytes(b"PK\x03\x04 and then nothing")


def a_list(path):
    torch.save([torch.ones(2)], path)


def mixed(path):
    torch.save({"a": torch.ones(2), "b": "text"}, path)


def sparse(path):
    torch.save({"a": torch.eye(3).to_sparse()}, path)


@pytest.mark.parametrize(
    "write", [whole_module, bomb, plain_pickle_bomb, text, nothing, broken_zip, a_list, mixed, sparse]
)
def test_a_pickle_of_anything_but_dense_tensors_is_a_bad_archive_and_runs_nothing(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pytorch_model.bin")
    with pytest.raises(BadArchive) as caught:
        open_weights(tmp_path, allow_pickle=True)
    assert not (tmp_path / "exploded").exists()
    assert str(tmp_path) not in caught.value.message
    assert "\n" not in caught.value.message


def test_files_that_never_hold_still_are_refused(folder, monkeypatch):
    from container.memory import mapped

    moments = iter(range(1000))
    monkeypatch.setattr(mapped, "identity", lambda path: (0, 0, 0, next(moments)))
    with pytest.raises(BadArchive, match="keep changing"):
        open_weights(folder)
    assert mappings(folder) == 0


def test_a_file_that_was_still_being_copied_is_opened_again(folder, monkeypatch):
    from container.memory import mapped

    moments = iter([0, 1, 2, 2, 2, 2])
    monkeypatch.setattr(mapped, "identity", lambda path: (0, 0, 0, next(moments)))
    assert torch.equal(open_weights(folder)["embed"], tensors()["embed"])


@pytest.mark.parametrize("device", ["cpu", "sim"])
def test_what_has_to_be_copied_is_not_read_before_it_is_known_to_fit(tmp_path, device):
    """A large file whose tensors lie at an odd address: looking at it takes none of its bytes."""
    size = 256 << 20
    header = json.dumps({"floats": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        assert file.tell() % 4
        file.truncate(file.tell() + size)
    manifest = Manifest("folder", str(tmp_path), "", settings=Berth())
    before = anonymous_bytes()
    if device == "cpu":
        found = Known("cpu", allow_pickle=False, share=True).prepare("odd", manifest)
    else:
        sim, readers = SimDevice("sim:1MiB@1GB/s"), ThreadPoolExecutor(1)
        blocks = Blocks(
            sim, HostRegion(sim, 1 << 20), DeviceRegion(sim, 1 << 20), readers, allow_pickle=False, share=True
        )
        found = blocks.prepare("odd", manifest)
    assert sum(segment.bytes for segment in found) == size
    assert anonymous_bytes() - before < size // 8


def test_a_pickle_over_the_limit_of_a_device_is_refused_unread(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle at all" * 1000)
    sim, readers = SimDevice("sim:1KiB@1GB/s"), ThreadPoolExecutor(1)
    blocks = Blocks(sim, HostRegion(sim, 1 << 20), DeviceRegion(sim, 1 << 10), readers, allow_pickle=True, share=True)
    with pytest.raises(LargerThanTier, match="takes about 16000 bytes and the limit of the device is 1024"):
        blocks.prepare("old", Manifest("folder", str(tmp_path), "", settings=Berth()))


def test_what_the_page_cache_has_is_left_to_who_touches_it(on_disk):
    """To map it takes 30 ms for a BERT, which its neighbours would feel though nobody may ask the model."""
    file = on_disk / "model.safetensors"
    save_file({"w": torch.ones(5 << 20)}, file)
    weights = open_weights(on_disk)
    weights.read_ahead()
    assert all(cached(file))
    assert resident_bytes(file) < 20 << 20


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_reading_ahead_brings_the_whole_file_and_a_file_that_was_cut_is_left_to_the_check(on_disk, parts):
    file = on_disk / "model.safetensors"
    save_file({"w": torch.ones(5 << 20)}, file)
    weights = open_weights(on_disk)
    forget_cached(file)
    assert not any(cached(file))
    for part in range(parts):
        weights.read_ahead(part, parts)
    assert all(cached(file))
    assert bool((weights["w"] == 1).all())

    os.truncate(file, 1 << 20)
    weights.read_ahead()
    with pytest.raises(WeightsChanged):
        weights.check()
    weights.close()
    weights.read_ahead()
