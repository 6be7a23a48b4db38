"""config.pbtxt and the folders of versions beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from container.archive import triton
from container.archive.describe import describe
from container.archive.manifest import Batch, TensorSpec, Triton
from container.archive.triton import read_config
from container.errors import BadArchive

PORTS = """
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] } ]
output [ { name: "y" data_type: TYPE_STRING dims: [ 1 ] } ]
"""


def repository(folder: Path, config: str, *files: str) -> Path:
    for name in files or ("1/model.pt",):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
    folder.mkdir(exist_ok=True)
    (folder / "config.pbtxt").write_text(config)
    return folder


def test_everything_that_is_used_of_a_configuration_is_read(tmp_path: Path) -> None:
    config = f"""
    # comments are allowed
    name: "net" backend: "pytorch" max_batch_size: 16
    {PORTS}
    input {{ name: "flag" data_type: TYPE_BOOL dims: 1 reshape {{ shape: [ ] }} optional: true }}
    dynamic_batching {{ preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 1500 }}
    instance_group [ {{ count: 2 kind: KIND_GPU gpus: [ 0 ] }} ]
    parameters {{ key: "INFERENCE_MODE" value {{ string_value: "true" }} }}
    model_warmup [ {{ name: "w" batch_size: 1 }} ]
    """
    assert read_config(repository(tmp_path, config)) == Triton(
        name="net",
        version="1",
        file="1/model.pt",
        max_batch_size=16,
        max_delay_ms=2,
        inputs=[
            TensorSpec("x", "FP32", [-1, 3]),
            TensorSpec("flag", "BOOL", [1], reshape=[], optional=True),
        ],
        outputs=[TensorSpec("y", "BYTES", [1])],
    )


def test_without_a_name_the_folder_names_the_model(tmp_path: Path) -> None:
    assert read_config(repository(tmp_path / "net", PORTS)).name == "net"


@pytest.mark.parametrize(
    ("policy", "files", "file"),
    [
        ("", ["1/model.pt", "2/model.pt", "10/model.pt"], "10/model.pt"),
        ("", ["1/model.pt", "0/model.pt", "02/model.pt", "v3/model.pt"], "1/model.pt"),
        ("version_policy { latest { num_versions: 2 } }", ["1/model.pt", "3/model.pt"], "3/model.pt"),
        ("version_policy { all { } }", ["1/model.pt", "3/model.pt"], "3/model.pt"),
        ("version_policy { specific { versions: [1, 2] } }", ["1/model.pt", "2/model.pt", "3/model.pt"], "2/model.pt"),
        ('platform: "onnxruntime_onnx"', ["1/model.pt", "1/model.onnx"], "1/model.onnx"),
        ('platform: "pytorch_libtorch"', ["1/model.onnx", "1/model.pt2"], "1/model.pt2"),
        ("", ["1/model.pt", "1/model.onnx"], "1/model.pt"),
        ('default_model_filename: "net.onnx"', ["1/model.pt", "1/net.onnx"], "1/net.onnx"),
    ],
)
def test_the_highest_version_that_may_be_served_is_and_its_file_found(
    policy: str, files: list[str], file: str, tmp_path: Path
) -> None:
    found = read_config(repository(tmp_path, PORTS + policy, *files))
    assert (found.file, found.version) == (file, file.partition("/")[0])


@pytest.mark.parametrize(
    ("config", "files", "said"),
    [
        ("input {", ["1/model.pt"], "config.pbtxt cannot be read, line:column first: 1:7"),
        ('nmae: "a"', ["1/model.pt"], 'no field named "nmae"'),
        ("max_batch_size: -1", ["1/model.pt"], "max_batch_size is -1"),
        ("max_batch_size: 99999999999", ["1/model.pt"], "Value out of range"),
        ("input { name: 'a' dims: [1] }", ["1/model.pt"], "tensor 'a' needs a data_type"),
        ("input { name: 'a' data_type: TYPE_FP32 dims: [-2] }", ["1/model.pt"], "dims of tensor 'a' are [-2]"),
        ("input { data_type: TYPE_FP32 dims: [1] }", ["1/model.pt"], "every input needs a name of its own"),
        (PORTS + 'output { name: "y" data_type: TYPE_FP32 dims: [1] }', ["1/model.pt"], "every output needs a name"),
        ('platform: "tensorrt_plan"', ["1/model.plan"], "asks for 'tensorrt_plan'; served here are pytorch"),
        ('backend: "python"', ["1/model.py"], "asks for 'python'; served here are pytorch"),
        ("", ["model.pt"], "no folder beside it that is named by a version number, like 1/model.pt"),
        ("", ["1/weights.pt"], "version 1 holds no model.pt or model.pt2 or model.onnx"),
        ('platform: "onnxruntime_onnx"', ["1/model.pt"], "version 1 holds no model.onnx"),
        ("version_policy { specific { versions: [4] } }", ["1/model.pt"], "no folder of 4, which version_policy names"),
        ('default_model_filename: "../../model.pt"', ["1/model.pt"], "must be a file in the version's folder"),
        ("sequence_batching { }", ["1/model.pt"], "sequence_batching, which is not done here"),
        ("ensemble_scheduling { }", ["1/model.pt"], "ensemble_scheduling, which is not done here"),
        ("model_transaction_policy { decoupled: true }", ["1/model.pt"], "decoupled answers"),
        ("#" * (1 << 20) + "\n", ["1/model.pt"], "that is no configuration"),
        ("model_warmup {" * 2000, ["1/model.pt"], "cannot be read"),
    ],
)
def test_a_repository_that_is_not_served_says_why(config: str, files: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(BadArchive) as caught:
        read_config(repository(tmp_path, config, *files))
    assert said in caught.value.message
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("config", ["\x00", "input [{{{{", "\ud800", "{" * 100_000, "name: '" + "a" * 1000])
def test_whatever_the_text_the_outcome_is_an_error_of_ours(config: str, tmp_path: Path) -> None:
    folder = repository(tmp_path, "")
    (folder / "config.pbtxt").write_bytes(config.encode("utf-8", "surrogatepass"))
    with pytest.raises(BadArchive):
        read_config(folder)


@pytest.mark.parametrize("home", ["", "net"])
def test_a_repository_is_described_at_the_root_or_one_folder_down(home: str, tmp_path: Path) -> None:
    repository(tmp_path / home, PORTS + "max_batch_size: 8", "1/model.pt", "7/model.pt")
    manifest = describe(tmp_path)
    assert (manifest.kind, manifest.task, manifest.weights_bytes) == ("triton", "tensors", len("weights"))
    assert (manifest.model_dir, manifest.code_dir, manifest.brings_code) == (str(tmp_path / home), "", False)
    assert manifest.triton is not None
    assert manifest.triton.file == "7/model.pt"
    assert manifest.settings.batch == Batch(8, 0)


def test_a_torch_export_file_counts_as_code(tmp_path: Path) -> None:
    assert describe(repository(tmp_path, PORTS, "1/model.pt2")).brings_code


def test_berth_json_has_the_last_word_on_batching(tmp_path: Path) -> None:
    repository(tmp_path, PORTS + "max_batch_size: 8")
    (tmp_path / "berth.json").write_text('{"batch": {"max_size": 3}}')
    assert describe(tmp_path).settings.batch == Batch(3, 0)


def test_two_repositories_in_one_archive_are_several_tasks(tmp_path: Path) -> None:
    repository(tmp_path / "a", PORTS)
    repository(tmp_path / "b", PORTS)
    assert describe(tmp_path).kind == "tasks"


@pytest.mark.parametrize("missing", ["google.protobuf", "tritonclient"])
def test_without_the_extra_the_message_says_what_to_install(missing: str, tmp_path: Path) -> None:
    folder = repository(tmp_path, PORTS)
    code = f"""
import sys
from importlib.machinery import PathFinder

class Missing(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")

sys.meta_path.insert(0, Missing)
from pathlib import Path
from container.archive import triton
from container.errors import LoadFailed
try:
    triton.read_config(Path({str(folder)!r}))
except LoadFailed as error:
    print(error.message)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"cannot read config.pbtxt: No module named '{missing}'; install the extra: pip install" in told
    assert "berth[triton]" in told


def test_libraries_that_do_not_load_are_told_without_the_servers_paths() -> None:
    broken = ImportError("cannot import name 'x' from 'google.protobuf' (/opt/berth/lib/google/protobuf/__init__.py)")
    told = triton._unreadable(broken).message
    assert "/opt" not in told
    assert "berth[triton]" in told


def test_the_parser_is_imported_only_when_a_repository_is_met(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text("")
    code = f"""
import sys
from pathlib import Path
from container.archive.describe import describe
describe(Path({str(tmp_path)!r}))
print([name for name in sys.modules if name.startswith(("google", "tritonclient", "grpc"))])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
