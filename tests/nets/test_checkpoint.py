import json
import os

import pytest
import torch
from safetensors.torch import save_file

from container.errors import BadArchive
from container.nets import checkpoint, config

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.ones(4, dtype=torch.bfloat16)}


def check_weights(found):
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], WEIGHTS[name]) and found[name].dtype is WEIGHTS[name].dtype for name in WEIGHTS)


def index(path, name, mapping):
    (path / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": mapping}))


class RunsCode:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_safetensors_are_read(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    check_weights(checkpoint.read(tmp_path))


def test_a_checkpoint_in_several_files_is_put_together_by_its_index(tmp_path):
    for number, name in enumerate(WEIGHTS):
        save_file({name: WEIGHTS[name]}, tmp_path / f"model-{number}.safetensors")
    index(tmp_path, "model.safetensors", {name: f"model-{number}.safetensors" for number, name in enumerate(WEIGHTS)})
    assert [file.name for file in checkpoint.files(tmp_path)] == ["model-0.safetensors", "model-1.safetensors"]
    check_weights(checkpoint.read(tmp_path))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_state_dicts_are_read_new_and_old(tmp_path, zipped):
    torch.save({**WEIGHTS, "step": 5}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    check_weights(checkpoint.read(tmp_path))


def test_safetensors_are_preferred_over_a_pickle_of_the_same_model(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even read")
    check_weights(checkpoint.read(tmp_path))


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    mark = tmp_path / "it-ran"
    torch.save({"a": RunsCode(mark)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BadArchive, match=r"pytorch_model\.bin cannot be read as a checkpoint of plain tensors"):
        checkpoint.read(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\xff" * 8])
def test_a_broken_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadArchive, match=name):
        checkpoint.read(tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-3])
    with pytest.raises(BadArchive, match=r"model\.safetensors"):
        checkpoint.read(tmp_path)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "missing.safetensors"])
def test_an_index_that_points_elsewhere_is_refused(tmp_path, shard):
    (tmp_path.parent / "secret.safetensors").write_bytes(b"x")
    index(tmp_path, "model.safetensors", {"a": shard})
    with pytest.raises(BadArchive, match="not a file beside it"):
        checkpoint.files(tmp_path)


def test_a_pickle_of_something_else_is_refused(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "pytorch_model.bin")
    with pytest.raises(BadArchive, match="holds a list"):
        checkpoint.read(tmp_path)


def test_no_weights_at_all_says_what_was_looked_for(tmp_path):
    with pytest.raises(BadArchive, match=r"none of model\.safetensors, pytorch_model\.bin"):
        checkpoint.read(tmp_path)


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ({}, ["LABEL_0", "LABEL_1"]),
        ({"num_labels": 3}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ({"id2label": {"1": "b", "0": "a"}}, ["a", "b"]),
    ],
)
def test_labels_come_in_the_order_of_their_numbers(found, names):
    assert config.labels(found) == names


@pytest.mark.parametrize("given", [{"0": "a", "2": "c"}, ["a"], {"a": "0"}, 7])
def test_labels_with_gaps_are_the_archives_mistake(given):
    with pytest.raises(BadArchive, match="id2label"):
        config.labels({"id2label": given})


@pytest.mark.parametrize("content", [b"", b"[1]", b"{"])
def test_a_broken_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(BadArchive, match=r"config\.json"):
        config.fields(tmp_path)


def test_a_missing_file_is_empty_but_config_json_must_be_there(tmp_path):
    assert config.fields(tmp_path, "tokenizer_config.json") == {}
    with pytest.raises(BadArchive, match=r"no config\.json"):
        config.fields(tmp_path)
