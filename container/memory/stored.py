"""The tensors of weight files as they are stored: views on a mapping of safetensors, or what a pickle holds.

Does not cover: dtype and device that they are served in, how long a mapping stays (``memory/weights``).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from container.errors import BadArchive
from container.memory.mapped import MappedFile, WeightsChanged, identity
from container.memory.mapping import FileMapping
from container.memory.sizes import ITEM_BYTES, Checkpoint, Header, TensorInfo, read_header
from container.nets import pickles

#: safetensors dtype -> torch dtype
TORCH: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "C64": torch.complex64,
}
STORED = {torch_dtype: name for name, torch_dtype in TORCH.items()}


class Stored(NamedTuple):
    """The tensors of one file.

    mapped: what of their memory lies in a mapping of the file; nothing else may ever be unmapped or covered.
    """

    tensors: dict[str, torch.Tensor]
    mapped: Sequence[FileMapping | torch.UntypedStorage]


def map_file(path: Path, infos: Header, *, only_mapped: bool = False) -> Stored:
    """Return views on a private mapping of ``path``, whose header is ``infos``.

    The mapping has no descriptor, and is gone with its last view. only_mapped: leave out what has to be copied.
    Raises MemoryError, WeightsChanged.
    """
    size = max((info.stop for info in infos.values()), default=0)
    if size == 0:
        return Stored({}, [])
    try:
        mapping = FileMapping(path, size)
    except MemoryError as error:
        raise MemoryError(f"no room in the address space for {path.name}") from error
    except (OSError, ValueError) as error:  # gone, or shorter than its header said a moment ago
        raise WeightsChanged(f"{path.name} changed while it was being opened") from error
    storage = mapping.storage()
    whole = {dtype: _whole(storage, TORCH[dtype]) for dtype in {info.dtype for info in infos.values()}}
    views = {
        name: whole[info.dtype].as_strided(info.shape, infos.strides[name], info.start // ITEM_BYTES[info.dtype])
        for name, info in infos.items()
        if infos.is_aligned or info.is_aligned
    }
    if not infos.is_aligned and not only_mapped:
        views = {name: views[name] if name in views else _copied(storage, info) for name, info in infos.items()}
    return Stored(views, [mapping])


def _copied(storage: torch.UntypedStorage, info: TensorInfo) -> torch.Tensor:
    """Return a tensor that lies where no view of its dtype can start."""
    raw = torch.asarray(storage[info.start : info.stop], dtype=torch.uint8)
    return raw.clone().view(TORCH[info.dtype]).view(info.shape)


def _whole(storage: torch.UntypedStorage, dtype: torch.dtype) -> torch.Tensor:
    """Return all of ``storage`` as elements of ``dtype``, as far as whole ones go; its views are made fastest."""
    return torch.empty(0, dtype=dtype).set_(storage, 0, (storage.nbytes() // dtype.itemsize,), (1,))


def read_pickle(path: Path) -> Stored:
    """Return the tensors of a pickled state_dict, mapped where its format allows that. Raises BadArchive."""
    state, mapped = _load_pickle(path)
    while isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BadArchive(f"{path.name} holds no state_dict: expected names and tensors; save model.state_dict()")
    tensors = {str(name): tensor.detach() for name, tensor in state.items()}
    odd = [name for name, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized]
    if odd:
        raise BadArchive(f"the weights have sparse or quantised tensors ({odd[0]}); only dense ones can be served")
    return Stored(tensors, [tensor.untyped_storage() for tensor in tensors.values()] if mapped else [])


def _load_pickle(path: Path) -> tuple[Any, bool]:
    """Return tensors and plain containers, all that a pickle may hold, and whether they lie mapped."""
    try:
        with path.open("rb") as file:
            mapped = file.read(2) == b"PK"  # the older format cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped), mapped
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        if "allocate memory" in str(error):
            raise
        reason = pickles.reason(str(error)) or type(error).__name__
        raise BadArchive(f"{path.name} cannot be read as plain weights: {reason}") from error


def read_stored(checkpoint: Checkpoint, *, mapped: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors as they are stored, mapped where the format allows it. Raises BadArchive, WeightsChanged.

    mapped: of safetensors only those that take no memory of their own.
    """
    found: dict[str, torch.Tensor] = {}
    for path in checkpoint.files:
        opened_as = identity(path)
        pickled = checkpoint.kind == "pickle"
        one = read_pickle(path) if pickled else map_file(path, read_header(path), only_mapped=mapped)
        MappedFile(path, opened_as, one.mapped, in_full=False)
        found |= one.tensors
    return found
