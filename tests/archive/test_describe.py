from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from container.archive.describe import describe
from container.archive.manifest import Batch, Berth, Manifest
from container.archive.unpack import unpack
from container.errors import BadArchive, ModelMissing

BERT = json.dumps({"architectures": ["BertModel"], "model_type": "bert"})
MANIFEST = json.dumps({"model": {"modelName": "a", "handler": "service.py:handle"}})
Make = Callable[[dict[str, str]], Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def build(files: dict[str, str]) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
            os.utime(folder / name, ns=(5, 7))
        return folder

    return build


def refusal(folder: Path, program: str = "inference.py") -> str:
    with pytest.raises(BadArchive) as refused:
        describe(folder, program=program)
    return refused.value.message


# --- the kinds ---


def test_a_script_is_described_whole(make: Make) -> None:
    files = {
        "code/inference.py": "def model_fn(d): ...",
        "code/requirements.txt": "# what we need\nemoji\n",
        "model/config.json": BERT,
        "model/model.safetensors": "12345",
        "model/pytorch_model.bin": "1234567",
        "berth.json": '{"pin": true, "batch": {"max_size": 4}}',
    }
    folder = make(files)
    assert describe(folder) == Manifest(
        kind="script",
        model_dir=str(folder),
        code_dir=str(folder / "code"),
        program="inference.py",
        task="embeddings",
        architectures=["BertModel"],
        weights_bytes=5,
        requirements=str(folder / "code/requirements.txt"),
        settings=Berth(pin=True, batch=Batch(max_size=4)),
        identity=f"7-{sum(map(len, files.values()))}",
    )


@pytest.mark.parametrize("home", ["", "model/"])
def test_a_hugging_face_folder_is_described_whole_at_the_root_and_under_model(make: Make, home: str) -> None:
    folder = make({f"{home}config.json": BERT, f"{home}model.safetensors": "12345", f"{home}tokenizer.json": "{}"})
    assert describe(folder) == Manifest(
        kind="folder",
        model_dir=str(folder / home),
        task="embeddings",
        architectures=["BertModel"],
        weights_bytes=5,
        identity=f"7-{len(BERT) + 5 + 2}",
    )


def test_a_handler_is_described_whole(make: Make) -> None:
    folder = make({"code/handler.py": "class Echo: ...", "config.json": BERT, "model.safetensors": "12345"})
    assert describe(folder) == Manifest(
        kind="handler",
        model_dir=str(folder),
        code_dir=str(folder / "code"),
        program="handler.py",
        weights_bytes=5,
        identity=f"7-{15 + len(BERT) + 5}",
    )


WEIGHTS = {"config.json": BERT, "model.safetensors": "1"}


@pytest.mark.parametrize(
    ("files", "kind", "home", "program", "task"),
    [
        ({"code/inference.py": "", "code/handler.py": "", **WEIGHTS}, "script", "", "inference.py", "embeddings"),
        (
            {"code/inference.py": "", "berth.json": '{"handler": "a.b:C"}', "code/a/b.py": ""},
            "handler",
            "",
            "a.b:C",
            "",
        ),
        ({"berth.json": '{"handler": "h:C"}', "code/h/__init__.py": "", **WEIGHTS}, "handler", "", "h:C", ""),
        ({"code/requirements.txt": "x", **WEIGHTS}, "folder", "", "", "embeddings"),
        ({"config.pbtxt": "", "1/model.pt": ""}, "triton", "", "", "tensors"),
        ({"bert/config.pbtxt": "", "bert/3/model.onnx": ""}, "triton", "bert", "", "tensors"),
        ({"MAR-INF/MANIFEST.json": MANIFEST, "service.py": "", **WEIGHTS}, "mar", "", "service.py:handle", ""),
        ({"xgboost-model": ""}, "tabular", "", "", "tabular"),
        ({"m.ubj": ""}, "tabular", "", "", "tabular"),
        ({"m.json": '{"learner":{"attributes":{}}}'}, "tabular", "", "", "tabular"),
        ({"a/config.json": BERT, "a/model.safetensors": "1", "b/code/inference.py": ""}, "tasks", "", "", "router"),
        ({"berth.json": '{"task": "ranking"}', "model/weights.pt": "1"}, "folder", "model", "", "ranking"),
        ({"code/.ipynb_checkpoints/inference.py": "", "._config.json": "x", **WEIGHTS}, "folder", "", "", "embeddings"),
    ],
)
def test_the_kinds_are_told_apart_in_their_order(
    make: Make, files: dict[str, str], kind: str, home: str, program: str, task: str
) -> None:
    folder = make(files)
    found = describe(folder)
    assert (found.kind, found.model_dir, found.program, found.task) == (kind, str(folder / home), program, task)


def test_a_script_of_another_name_is_found_by_that_name(make: Make) -> None:
    folder = make({"code/predict.py": "", "code/inference.py": ""})
    assert describe(folder, program="predict.py").program == "predict.py"
    assert describe(folder, program="code/predict.py").program == "predict.py"
    assert describe(folder, program="missing.py").program == "inference.py"


def test_requirements_that_ask_for_nothing_are_none(make: Make) -> None:
    assert describe(make({"code/inference.py": "", "code/requirements.txt": "\n# none\n  \n"})).requirements == ""


def test_an_archive_packed_with_dots_and_checkpoints_is_described(make: Make, tmp_path: Path) -> None:
    folder = make({**WEIGHTS, ".ipynb_checkpoints/config-checkpoint.json": "{"})
    os.system(f"tar -czf {tmp_path}/a.tar.gz -C {folder} .")
    unpack(tmp_path / "a.tar.gz", tmp_path / "out", max_bytes=1 << 20)
    assert describe(tmp_path / "out").kind == "folder"


# --- the task ---


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertModel", "embeddings"),
        ("BertForMaskedLM", "embeddings"),
        ("BertForPreTraining", "embeddings"),
        ("GPT2LMHeadModel", "text_generation"),
        ("LlamaForCausalLM", "text_generation"),
        ("ResNetForImageClassification", "image_classification"),
        ("ViTForImageClassification", "image_classification"),
        ("DistilBertForSequenceClassification", "text_classification"),
        ("BartForConditionalGeneration", "summarization"),
        ("BartForSequenceClassification", "text_classification"),
        ("XLMRobertaModel", "embeddings"),
    ],
)
def test_the_architecture_tells_the_task(make: Make, architecture: str, task: str) -> None:
    folder = make({"config.json": json.dumps({"architectures": [architecture]}), "pytorch_model.bin": "1"})
    assert describe(folder, hf_task="fill-mask").task == task


@pytest.mark.parametrize(
    ("hub", "task"),
    [
        ("text-classification", "text_classification"),
        ("sentiment-analysis", "text_classification"),
        ("feature-extraction", "embeddings"),
        ("text_generation", "text_generation"),
        ("object-detection", "object_detection"),
    ],
)
def test_where_the_architecture_is_silent_the_environment_tells_the_task(make: Make, hub: str, task: str) -> None:
    assert describe(make({"config.json": "{}", "model.safetensors": "1"}), hf_task=hub).task == task


def test_berth_json_tells_the_task_before_the_architecture(make: Make) -> None:
    folder = make({**WEIGHTS, "berth.json": '{"task": "text-classification"}'})
    assert describe(folder, hf_task="summarization").task == "text_classification"


def test_a_task_that_nobody_tells_is_asked_for(make: Make) -> None:
    folder = make({"config.json": '{"architectures": ["Wav2Vec2ForCTC"]}', "model.safetensors": "1"})
    assert "is not known; if a built-in task does it, name that in berth.json" in refusal(folder)


# --- weights and identity ---


def test_weights_are_counted_in_the_form_that_is_loaded(make: Make) -> None:
    folder = make({"code/inference.py": "", "net.pt": "123", "sub/more.pt": "45", "optimizer.pt": "6789"})
    assert describe(folder).weights_bytes == 5
    (folder / "model.safetensors").write_text("1")
    assert describe(folder).weights_bytes == 1


def test_the_identity_changes_with_the_files_and_with_nothing_else(make: Make) -> None:
    folder = make({**WEIGHTS, "code/handler.py": "x"})
    before = describe(folder).identity
    (folder / "code" / "__pycache__").mkdir()
    (folder / "code" / "__pycache__" / "handler.cpython-311.pyc").write_text("compiled")
    assert describe(folder).identity == before
    (folder / "model.safetensors").write_text("2")
    assert describe(folder).identity != before


# --- refusals ---


def test_a_missing_folder_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="no folder"):
        describe(tmp_path / "nowhere")


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_text("")
    assert "is a file; a model is the folder that an archive was unpacked to" in refusal(tmp_path / "a.tar.gz")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "the folder is empty"),
        ({"README.md": ""}, "found README.md"),
        (
            {f"f{number:02}": "" for number in range(12)},
            "found f00, f01, f02, f03, f04, f05, f06, f07, f08, f09 and 2 more",
        ),
        (
            {"bert/config.json": BERT, "bert/model.safetensors": "1", "notes/x": ""},
            "one folder down in bert: pack with",
        ),
        ({"bert/code/inference.py": ""}, "pack with `tar -C bert -czf model.tar.gz .`"),
        ({"inference.py": ""}, "inference.py lies at the root: it belongs into code/"),
        ({"handler.py": ""}, "handler.py lies at the root"),
        ({"model.tar.gz": ""}, "model.tar.gz is an archive in an archive"),
        ({"config.json": BERT}, "config.json has no weights beside it"),
        ({"config.json": BERT, "tf_model.h5": "1"}, "tf_model.h5 is not PyTorch's: convert it"),
        ({"model.pt": "1"}, "no config.json beside them and no code/inference.py to load them"),
        ({"code/infer.py": "", **WEIGHTS}, "code/ holds infer.py but neither inference.py nor handler.py"),
        ({"config.json": "{", "model.safetensors": "1"}, "config.json is not JSON"),
        ({"config.json": "[" * 100_000, "model.safetensors": "1"}, "config.json is not JSON"),
        ({"config.json": "[]", "model.safetensors": "1"}, "config.json must hold one JSON object"),
        ({"config.json": BERT, "model.safetensors": ""}, "model.safetensors is empty"),
        ({"config.json": BERT, "model.safetensors": "version https://git-lfs.github.com/spec/v1\n"}, "git-lfs pointer"),
        (
            {"config.json": BERT, "model.safetensors.index.json": '{"weight_map": {"a": "model-1.safetensors"}}'},
            "names weights that are not in the archive: model-1.safetensors",
        ),
        ({"MAR-INF/MANIFEST.json": "{"}, "MAR-INF/MANIFEST.json is not JSON"),
        ({"MAR-INF/MANIFEST.json": '{"model": {}}'}, "names no model.handler"),
        ({"berth.json": '{"taks": "x"}', **WEIGHTS}, "did you mean task?"),
        ({"berth.json": '{"handler": "handler"}', "code/handler.py": ""}, 'it must be "module:Class"'),
        ({"berth.json": '{"handler": "../x:C"}'}, 'it must be "module:Class"'),
        ({"berth.json": '{"handler": "mine:C"}', "code/handler.py": ""}, "code/mine.py is not in the archive"),
    ],
)
def test_what_is_no_model_is_refused_with_the_mend(make: Make, files: dict[str, str], said: str) -> None:
    assert said in refusal(make(files))


def test_the_config_of_a_script_may_be_anything(make: Make) -> None:
    found = describe(make({"code/inference.py": "", "config.json": "learning_rate: 1"}))
    assert (found.kind, found.architectures, found.task) == ("script", [], "")


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_followed(make: Make, tmp_path: Path) -> None:
    folder = make(WEIGHTS)
    (folder / "copy.bin").symlink_to("model.safetensors")
    assert describe(folder).weights_bytes == 1
    (tmp_path / "secret").write_text("x")
    for target in (tmp_path / "secret", tmp_path, "../secret", ".."):
        (folder / "out").symlink_to(target)
        assert refusal(folder) == "out is a symlink that leads out of the model's folder; put the file itself there"
        (folder / "out").unlink()
    (folder / "out").symlink_to("nothing")
    assert refusal(folder) == "out cannot be read: No such file or directory"


def test_a_fifo_in_the_place_of_a_config_is_not_waited_for(make: Make) -> None:
    folder = make(WEIGHTS)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert refusal(folder).startswith("config.json is a fifo, a socket or a device")
    (folder / "config.json").unlink()
    (folder / "config.json").write_text('{"architectures": ["BertModel"]}')
    os.mkfifo(folder / "tokenizer_config.json")
    assert refusal(folder).startswith("tokenizer_config.json is a fifo")
    (folder / "tokenizer_config.json").unlink()
    os.mkfifo(folder / "control.sock")
    describe(folder)


def test_a_config_of_gigabytes_is_not_read(make: Make) -> None:
    folder = make(WEIGHTS)
    with (folder / "config.json").open("wb") as file:
        file.truncate(1 << 32)
    assert refusal(folder) == f"config.json has {1 << 32} bytes, too many for what it should be"


def test_the_folder_itself_may_be_a_link(make: Make, tmp_path: Path) -> None:
    folder = make(WEIGHTS)
    shutil.move(folder, tmp_path / "real")
    folder.symlink_to("real")
    assert describe(folder).model_dir == str(folder)
