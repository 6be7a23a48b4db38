"""Triton's ``config.pbtxt`` and the folders of versions beside it, as one Triton record.

    config.pbtxt    1/model.pt    2/model.pt      ->  the tensors in and out, batching, "2/model.pt"

The text protobuf is read by protobuf itself with the message that tritonclient brings, both only when such a file is
met: the extra ``triton``. Loaded by its path, because the package around it wants gRPC, which nothing here needs.
Does not cover: whether the network takes these tensors (``handlers/tensors`` finds out).
"""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from container.archive.manifest import TensorSpec, Triton
from container.errors import BadArchive, LoadFailed
from container.protocol import dtypes

_NAME = "config.pbtxt"
#: More than any configuration has; the parser is Python's and takes its time.
_MAX_BYTES = 1 << 20
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
#: What a folder of a version holds, in the order of preference; the ending chooses the way of loading.
FILES = ("model.pt", "model.pt2", "model.onnx")
_SUFFIXES = {"pytorch": (".pt", ".pt2"), "onnxruntime": (".onnx",), "": (".pt", ".pt2", ".onnx")}
_BACKENDS = {"pytorch_libtorch": "pytorch", "onnxruntime_onnx": "onnxruntime"}


def read_config(folder: Path) -> Triton:
    """Return what ``folder``, the one with config.pbtxt, says of its model.

    Raises BadArchive for what is wrong or not done here, LoadFailed when the libraries to read it are not installed.
    """
    path = folder / _NAME
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BadArchive(f"{_NAME} cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_BYTES:
        raise BadArchive(f"{_NAME} is over {_MAX_BYTES} bytes; that is no configuration")
    config = _parse(raw)
    backend = _backend(config)
    version, file_name = _newest(folder, config, backend)
    _check_scheduling(config)
    inputs = [_spec(each) for each in config.input]
    outputs = [_spec(each) for each in config.output]
    for what, specs in (("input", inputs), ("output", outputs)):
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names) or "" in names:
            raise BadArchive(f"{_NAME}: every {what} needs a name of its own; found {', '.join(names) or 'none'}")
    if config.max_batch_size < 0:
        raise BadArchive(f"{_NAME}: max_batch_size is {config.max_batch_size}; it must be 0 or more")
    delay_us = config.dynamic_batching.max_queue_delay_microseconds
    return Triton(
        name=config.name or folder.name,
        version=version,
        file=f"{version}/{file_name}",
        max_batch_size=config.max_batch_size,
        max_delay_ms=min(-(-delay_us // 1000), 10_000),
        inputs=inputs,
        outputs=outputs,
    )


@functools.cache
def _message() -> tuple[ModuleType, ModuleType]:
    """The modules model_config_pb2 and google.protobuf.text_format. Raises LoadFailed when they are not installed."""
    try:
        from google.protobuf import runtime_version, text_format
    except ImportError as error:
        raise _unreadable(error) from error
    try:
        package = importlib.util.find_spec("tritonclient")
        if package is None or not package.submodule_search_locations:
            raise ModuleNotFoundError("No module named 'tritonclient'")
        path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
        spec = importlib.util.spec_from_file_location("berth_model_config_pb2", path)
        assert spec is not None, path
        assert spec.loader is not None, path
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, OSError, runtime_version.VersionError) as error:
        raise _unreadable(error) from error
    return module, text_format


def _unreadable(error: Exception) -> LoadFailed:
    # Texts of other import errors name files of the server.
    why = error if isinstance(error, ModuleNotFoundError) else f"{type(error).__name__} of its libraries"
    return LoadFailed(
        f"this is a Triton archive and the server cannot read {_NAME}: {why}; install the extra: "
        "pip install 'berth[triton]'"
    )


def _parse(raw: bytes) -> Any:
    """The ModelConfig message in ``raw``."""
    module, text_format = _message()
    try:
        return text_format.Parse(raw.decode("utf-8-sig"), module.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise BadArchive(f"{_NAME} cannot be read, line:column first: {str(error)[:300]}") from error


def _backend(config: Any) -> str:
    """Which library the model is for: pytorch, onnxruntime, or "" when the file's ending is to tell."""
    wanted: str = _BACKENDS.get(config.platform, config.backend or config.platform)
    if wanted not in _SUFFIXES:
        raise BadArchive(
            f"{_NAME} asks for {wanted!r}; served here are pytorch (TorchScript in model.pt, torch.export in "
            "model.pt2) and onnxruntime (model.onnx): export the model to one of these"
        )
    return wanted


def _newest(folder: Path, config: Any, backend: str) -> tuple[str, str]:
    """The highest version that the policy allows, and its file."""
    wanted = {str(number) for number in config.version_policy.specific.versions}
    there = [each.name for each in folder.iterdir() if each.is_dir() and _VERSION.fullmatch(each.name)]
    versions = [name for name in there if not wanted or name in wanted]
    if not versions:
        asked = f" of {', '.join(sorted(wanted))}, which version_policy names," if wanted else ""
        raise BadArchive(f"{_NAME} has no folder{asked} beside it that is named by a version number, like 1/model.pt")
    version = max(versions, key=int)
    named = config.default_model_filename
    if named and Path(named).name != named:
        raise BadArchive(f"{_NAME}: default_model_filename is {named!r}; it must be a file in the version's folder")
    candidates = (named,) if named else FILES
    for name in candidates:
        if name.endswith(_SUFFIXES[backend]) and (folder / version / name).is_file():
            return version, name
    expected = [name for name in candidates if name.endswith(_SUFFIXES[backend])] or list(candidates)
    raise BadArchive(f"version {version} holds no {' or '.join(expected)}, which {_NAME} asks for")


def _check_scheduling(config: Any) -> None:
    scheduling = config.WhichOneof("scheduling_choice")
    if scheduling in ("sequence_batching", "ensemble_scheduling"):
        raise BadArchive(f"{_NAME} asks for {scheduling}, which is not done here; serve each model by itself")
    if config.model_transaction_policy.decoupled:
        raise BadArchive(f"{_NAME} asks for decoupled answers, which are not done here")


def _spec(tensor: Any) -> TensorSpec:
    """One input or output. Raises BadArchive."""
    module, _ = _message()
    datatype = module.DataType.Name(tensor.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")
    if datatype not in dtypes.NAMES:
        raise BadArchive(f"{_NAME}: tensor {tensor.name!r} needs a data_type, TYPE_FP32 for instance")
    if any(size < -1 for size in (*tensor.dims, *tensor.reshape.shape)):
        raise BadArchive(f"{_NAME}: dims of tensor {tensor.name!r} are {list(tensor.dims)}; -1 means any, 0 none")
    return TensorSpec(
        name=tensor.name,
        datatype=datatype,
        dims=list(tensor.dims),
        reshape=list(tensor.reshape.shape) if tensor.HasField("reshape") else None,
        optional=getattr(tensor, "optional", False),
    )
