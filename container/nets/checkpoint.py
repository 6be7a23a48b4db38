"""A checkpoint's tensors by name, read from the folder of a model.

What berth itself serves from goes through ``Context.open_weights`` (mapped, moved between tiers, shared); this is for
everything that runs without it: a handler used on its own, tests, a bench. safetensors are mapped, not read.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from container.errors import BadArchive
from container.nets.pickles import reason

#: In the order of preference; an index lists the shards of a checkpoint in several files.
FILES = ("model.safetensors", "pytorch_model.bin")


def files(model_dir: Path) -> list[Path]:
    """Return the weight files of the checkpoint in ``model_dir``, safetensors preferred, none twice.

    Raises BadArchive when there are none, or when an index names a file that is not beside it.
    """
    for name in FILES:
        if (model_dir / name).is_file():
            return [model_dir / name]
        index = model_dir / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    raise BadArchive(f"no weights: none of {', '.join(FILES)} (or their .index.json) is in the model's folder")


def _shards(index: Path) -> list[Path]:
    try:
        shards = sorted(set(msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values()))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadArchive(f"{index.name} cannot be read: {error}") from error
    for shard in shards:
        if Path(shard).name != shard or not (index.parent / shard).is_file():
            raise BadArchive(f"{index.name} names {shard!r}, which is not a file beside it")
    return [index.parent / shard for shard in shards]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def read(model_dir: Path) -> dict[str, Tensor]:
    """Return name -> tensor on the CPU, in the dtype of the files; the tensors are not to be written.

    Pickles are opened with ``weights_only=True``: nothing in them runs. Raises BadArchive.
    """
    tensors: dict[str, Tensor] = {}
    for file in files(model_dir):
        tensors |= _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)
    return tensors


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(str(file))
    except (SafetensorError, OSError, ValueError) as error:
        raise BadArchive(f"{file.name} cannot be read as safetensors: {error}") from error


def _pickled(file: Path) -> dict[str, Tensor]:
    try:
        try:
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before torch 1.6, not a zip: cannot be mapped
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, OSError, EOFError, ValueError) as error:
        raise BadArchive(
            f"{file.name} cannot be read as a checkpoint of plain tensors: {reason(str(error))}"
        ) from error
    if not isinstance(found, dict):
        raise BadArchive(f"{file.name} holds a {type(found).__name__}; expected a dict of tensors (a state_dict)")
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
