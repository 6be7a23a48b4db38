import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from container.errors import BadArchive
from container.memory import sizes
from container.memory.sizes import Checkpoint, TensorInfo

TWO = {"word.weight": torch.ones(4, 3), "position_ids": torch.arange(5)}


def safetensors(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def test_every_tensor_of_a_header_is_found_where_safetensors_put_it(tmp_path):
    save_file(TWO, tmp_path / "model.safetensors", metadata={"format": "pt"})
    raw = (tmp_path / "model.safetensors").read_bytes()
    infos = sizes.read_header(tmp_path / "model.safetensors")
    assert {name: (info.dtype, info.shape) for name, info in infos.items()} == {
        "word.weight": ("F32", (4, 3)),
        "position_ids": ("I64", (5,)),
    }
    for name, info in infos.items():
        assert raw[info.start : info.stop] == TWO[name].numpy().tobytes()


@pytest.mark.parametrize(
    "raw, says",
    [
        (b"", "not a safetensors file"),
        (b"\x01\x02\x03", "not a safetensors file"),
        (b"<!DOCTYPE html>" * 10, "not a safetensors file"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "not a safetensors file"),
        (safetensors(b"{nonsense"), "cannot be read"),
        (safetensors(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "\xff": {}}'), "cannot be read"),
        (safetensors([1, 2]), "cannot be read"),
        (safetensors({"a": {"dtype": "F32", "shape": [1]}}), "cannot be read"),
        (safetensors({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, b"1234"), "dtype 'F33'; known"),
        (safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"), "cannot lie in bytes"),
        (safetensors({"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, b"1234"), "cannot lie"),
        (safetensors({"a": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]}}), "cannot lie in bytes"),
        (safetensors({"a": {"dtype": "U8", "shape": [4], "data_offsets": [-4, 0]}}, b"1234"), "cannot lie in bytes"),
        (safetensors({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}, b"12345678"), "starts at"),
        (safetensors({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, b"12345678"), "cut off or too long"),
        (safetensors({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}, b"1234"), "cut off or too long"),
        (
            safetensors(
                {
                    "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                    "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]},
                },
                b"123456",
            ),
            "starts at",
        ),
    ],
)
def test_a_header_that_lies_is_a_bad_archive(tmp_path, raw, says):
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(BadArchive, match=says) as caught:
        sizes.read_header(path)
    assert str(tmp_path) not in caught.value.message


@given(at=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 400))
def test_whatever_a_broken_file_says_its_tensors_lie_inside_it(tmp_path_factory, at, byte, cut):
    raw = bytearray(save(TWO))
    raw[at % len(raw)] = byte
    raw = raw[: len(raw) - cut] if cut % 3 == 0 else raw
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    path.write_bytes(raw)
    try:
        infos = sizes.read_header(path)
    except BadArchive:
        return
    assert all(8 <= info.start <= info.stop <= len(raw) for info in infos.values())
    assert sum(info.stop - info.start for info in infos.values()) <= len(raw)


def test_an_empty_tensor_takes_no_bytes():
    header = json.dumps({"a": {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]}}).encode()
    assert sizes.parse_header(header, 8 + len(header), "x") == {
        "a": TensorInfo("F32", (0, 3), 8 + len(header), 8 + len(header))
    }


def test_safetensors_go_before_pickles_and_one_file_before_shards(tmp_path):
    for name in ("pytorch_model.bin", "model.safetensors", "model.safetensors.index.json"):
        (tmp_path / name).write_bytes(b"")
    assert sizes.find_checkpoint(tmp_path) == Checkpoint("safetensors", (tmp_path / "model.safetensors",))


def test_a_single_file_of_any_name_is_the_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"")
    (tmp_path / "weights.pth").write_bytes(b"")
    assert sizes.find_checkpoint(tmp_path) == Checkpoint("pickle", (tmp_path / "weights.pth",))
    (tmp_path / "bert.safetensors").write_bytes(b"")
    assert sizes.find_checkpoint(tmp_path) == Checkpoint("safetensors", (tmp_path / "bert.safetensors",))


def test_two_files_that_could_be_meant_are_named_in_the_refusal(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"")
    (tmp_path / "b.safetensors").write_bytes(b"")
    with pytest.raises(BadArchive, match=r"a\.safetensors, b\.safetensors"):
        sizes.find_checkpoint(tmp_path)


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_a_folder_without_weights_is_a_bad_archive(tmp_path, folder):
    with pytest.raises(BadArchive, match="no weights"):
        sizes.find_checkpoint(tmp_path / folder)


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": "gone.safetensors"}}',
        '{"weight_map": {"a": "../escape.safetensors"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": ""}}',
    ],
)
def test_an_index_that_names_what_is_not_beside_it_is_a_bad_archive(tmp_path, index):
    (tmp_path.parent / "escape.safetensors").write_bytes(b"")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BadArchive, match=r"model\.safetensors\.index\.json"):
        sizes.find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "stored, dtype, device, served",
    [
        ("F32", "", "cpu", "F32"),
        ("F16", "", "cpu", "F32"),
        ("BF16", "", "cpu", "F32"),
        ("BF16", "", "cuda:0", "BF16"),
        ("BF16", "bfloat16", "cpu", "BF16"),
        ("F32", "float16", "cuda:0", "F16"),
        ("F64", "", "cpu", "F64"),
        ("F64", "float32", "cpu", "F32"),
        ("I64", "float16", "cpu", "I64"),
        ("BOOL", "", "cpu", "BOOL"),
    ],
)
def test_the_serving_dtype(stored, dtype, device, served):
    assert sizes.serving_dtype(stored, dtype, device) == served


def test_predicted_bytes_count_the_serving_dtype(tmp_path):
    save_file(
        {"h": torch.zeros(10, dtype=torch.bfloat16), "i": torch.zeros(3, dtype=torch.int64)}, tmp_path / "a.safetensors"
    )
    assert sizes.checkpoint_bytes(tmp_path) == 10 * 4 + 3 * 8
    assert sizes.checkpoint_bytes(tmp_path, "bfloat16") == 10 * 2 + 3 * 8
    assert sizes.checkpoint_bytes(tmp_path, "", "cuda:0") == 10 * 2 + 3 * 8


def test_predicted_bytes_sum_over_shards(tmp_path):
    save_file({"a": torch.zeros(10)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.zeros(7)}, tmp_path / "model-2.safetensors")
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert sizes.checkpoint_bytes(tmp_path) == 68


@pytest.mark.parametrize(
    "config, factor",
    [
        (None, 1),
        ("{", 1),
        ("{}", 1),
        ('{"torch_dtype": "float16"}', 2),
        ('{"dtype": "bfloat16"}', 2),
        ('{"dtype": 3}', 1),
    ],
)
def test_a_pickle_counts_as_its_file_and_twice_when_halves_are_widened(tmp_path, config, factor):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 100)
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert sizes.checkpoint_bytes(tmp_path) == 100 * factor


def test_a_folder_with_code_counts_all_its_weight_files(tmp_path):
    (tmp_path / "code").mkdir()
    for name in ("a.pt", "b.onnx", "xgboost-model", "code/inference.py", "readme.md"):
        (tmp_path / name).write_bytes(b"x" * 10)
    assert sizes.folder_bytes(tmp_path) == 30
