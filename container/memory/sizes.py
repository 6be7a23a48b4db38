"""What a model's weights will take, told from its files before anything is loaded. No torch.

    <8 bytes: N, little endian><N bytes: JSON {name: {dtype, shape, data_offsets}}><tensors, back to back>

Safetensors headers are read in full and believed in nothing: a header that lies about its file is a BadArchive, so that
``memory/weights`` may map by it. Source of the format: the safetensors README and ``tensor.rs``.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from container.errors import BadArchive

#: safetensors dtype -> bytes of an element
ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "C64": 8,
}
#: What a serving dtype converts; everything else is served as it lies.
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
#: Serving dtype ("float32" of berth.json) -> safetensors dtype.
SERVING = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
#: safetensors itself refuses longer headers.
MAX_HEADER_BYTES = 100_000_000
#: Endings of files that hold weights, of whatever framework.
WEIGHT_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pt2", ".pth", ".onnx", ".ckpt", ".npz", ".ubj", ".model", ".pkl", ".joblib"}
    | {".gguf"}
)
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt"})


class TensorInfo(NamedTuple):
    """One tensor of a safetensors file; ``start`` and ``stop`` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def is_aligned(self) -> bool:
        """Whether a view can start there; safetensors' own writer never puts a tensor elsewhere."""
        return self.start % ITEM_BYTES[self.dtype] == 0


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the elements from one index to the next, of a contiguous tensor."""
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


class Checkpoint(NamedTuple):
    """The weight files of one folder, and what wrote them."""

    kind: Literal["safetensors", "pickle"]
    files: tuple[Path, ...]


class _Info(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


_HEADER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_INFO = msgspec.json.Decoder(_Info)
_INDEX = msgspec.json.Decoder(_Index)


def find_checkpoint(model_dir: Path) -> Checkpoint:
    """Return the weight files right under ``model_dir``, safetensors before pickles, as transformers chooses them.

    Raises BadArchive if there are none, if several could be meant, or if an index names a file that is not there.
    """
    for kind, stem in (("safetensors", "model.safetensors"), ("pickle", "pytorch_model.bin")):
        if (model_dir / stem).is_file():
            return Checkpoint(kind, (model_dir / stem,))  # type: ignore[arg-type]
        index = model_dir / f"{stem}.index.json"
        if index.is_file():
            return Checkpoint(kind, _shards(index))  # type: ignore[arg-type]
    files = sorted(path for path in model_dir.iterdir() if path.is_file()) if model_dir.is_dir() else []
    for kind, suffixes in (("safetensors", frozenset({".safetensors"})), ("pickle", PICKLE_SUFFIXES)):
        found = [path for path in files if path.suffix in suffixes and path.name != "training_args.bin"]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise BadArchive(f"several files could be the weights: {names}; name one of them model.safetensors")
        if found:
            return Checkpoint(kind, (found[0],))  # type: ignore[arg-type]
    raise BadArchive("the folder has no weights: expected model.safetensors, or pytorch_model.bin")


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(_INDEX.decode(index.read_bytes()).weight_map.values()))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadArchive(f"{index.name} is not an index of shards: {error}") from error
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise BadArchive(f"{index.name} names the file {name!r}, which is not in the same folder")
    if not names:
        raise BadArchive(f"{index.name} names no file")
    return tuple(index.parent / name for name in names)


class Header(dict[str, TensorInfo]):
    """The tensors of a safetensors file, by name; files with equal headers have one object.

    key: what it is found by. strides: of each tensor, in elements. is_aligned: whether a view can start at each.
    """

    def __init__(self, key: bytes, tensors: Mapping[str, TensorInfo]) -> None:
        super().__init__(tensors)
        self.key = key
        self.strides = {name: _strides(tensor.shape) for name, tensor in tensors.items()}
        self.is_aligned = all(tensor.is_aligned for tensor in tensors.values())


#: The headers that were read last: models of one kind have the same, and it need not be read to know it again.
_headers: OrderedDict[bytes, Header] = OrderedDict()
#: Of tensors in all of them together; one takes about 250 bytes.
_KEPT_TENSORS = 1 << 14
_lock = threading.Lock()


def known_header(key: bytes) -> Header | None:
    """Return the header of ``key``, None if it is not kept any more."""
    with _lock:
        found = _headers.get(key)
        if found is not None:
            _headers.move_to_end(key)
        return found


def _keep(header: Header) -> None:
    with _lock:
        _headers[header.key] = header
        while len(_headers) > 1 and sum(map(len, _headers.values())) > _KEPT_TENSORS:
            _headers.popitem(last=False)


def read_header(path: Path) -> Header:
    """Return the tensors of a safetensors file. Raises BadArchive if the header is not true to the file."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        raw = file.read(8)
        length = int.from_bytes(raw, "little")
        if len(raw) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise BadArchive(
                f"{path.name} is not a safetensors file: it has {size} bytes, its header would have {length}"
            )
        header = file.read(length)
    key = hashlib.blake2b(header + size.to_bytes(8, "little"), digest_size=16).digest()
    found = known_header(key)
    if found is None:
        found = Header(key, parse_header(header, size, path.name))
        _keep(found)
    return found


def parse_header(raw: bytes, file_bytes: int, label: str) -> dict[str, TensorInfo]:
    """Return the tensors that the JSON ``raw`` describes in a file of ``file_bytes``; ``label`` is for messages.

    Raises BadArchive unless the tensors lie back to back and fill the file to its last byte.
    """
    try:
        fields = _HEADER.decode(raw)
        fields.pop("__metadata__", None)
        # Hundreds of models name their tensors alike: each name is kept once.
        infos = {sys.intern(name): _INFO.decode(info) for name, info in fields.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadArchive(f"the header of {label} cannot be read: {error}") from error
    data = 8 + len(raw)
    tensors = {name: _tensor(name, info, data, label) for name, info in infos.items()}
    at = data
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if tensor.start != at:
            raise BadArchive(f"the header of {label} lies: tensor {name!r} starts at {tensor.start}, expected {at}")
        at = tensor.stop
    if at != file_bytes:
        raise BadArchive(f"{label} is cut off or too long: its tensors end at byte {at}, the file at {file_bytes}")
    return tensors


def _tensor(name: str, info: _Info, data: int, label: str) -> TensorInfo:
    item_bytes = ITEM_BYTES.get(info.dtype)
    if item_bytes is None:
        raise BadArchive(f"{label}: tensor {name!r} has dtype {info.dtype!r}; known: {', '.join(sorted(ITEM_BYTES))}")
    start, stop = info.data_offsets
    if min(info.shape, default=0) < 0 or start < 0 or stop - start != math.prod(info.shape) * item_bytes:
        what = f"tensor {name!r} of {info.dtype} {info.shape}"
        raise BadArchive(f"the header of {label} lies: {what} cannot lie in bytes {start} to {stop}")
    return TensorInfo(info.dtype, tuple(info.shape), data + start, data + stop)


def serving_dtype(stored: str, dtype: str, device: str = "cpu") -> str:
    """Return the safetensors dtype in which a tensor stored as ``stored`` is served.

    dtype: "float32", "bfloat16" or "float16" for all floating tensors; "" keeps them as they are, except that half
    precision becomes float32 on a CPU, where it would be slower.
    """
    if stored not in FLOATS:
        return stored
    if dtype:
        return SERVING[dtype]
    return "F32" if device == "cpu" and stored in ("F16", "BF16") else stored


def checkpoint_bytes(model_dir: Path, dtype: str = "", device: str = "cpu") -> int:
    """Return the bytes that the weights under ``model_dir`` will take in their serving dtype, without loading them.

    Exact for safetensors; for pickles the size of the files, times two where config.json says that halves will be
    widened. Raises BadArchive.
    """
    checkpoint = find_checkpoint(model_dir)
    if checkpoint.kind == "pickle":
        stored = _config_dtype(model_dir)
        served = serving_dtype(stored, dtype, device)
        return sum(path.stat().st_size for path in checkpoint.files) * ITEM_BYTES[served] // ITEM_BYTES[stored]
    return sum(
        math.prod(tensor.shape) * ITEM_BYTES[serving_dtype(tensor.dtype, dtype, device)]
        for path in checkpoint.files
        for tensor in read_header(path).values()
    )


def in_place(model_dir: Path, dtype: str = "", device: str = "cpu") -> bool:
    """Whether the weights under ``model_dir`` can be served from where they lie, so that opening them takes no memory.

    Raises BadArchive.
    """
    checkpoint = find_checkpoint(model_dir)
    return (
        device == "cpu"
        and checkpoint.kind == "safetensors"
        and all(
            tensor.is_aligned and serving_dtype(tensor.dtype, dtype, device) == tensor.dtype
            for path in checkpoint.files
            for tensor in read_header(path).values()
        )
    )


def folder_bytes(model_dir: Path) -> int:
    """Return the size of all weight files under ``model_dir``: the guess for models that bring their own code."""
    return sum(
        path.stat().st_size
        for path in model_dir.rglob("*")
        if (path.suffix in WEIGHT_SUFFIXES or path.name == "xgboost-model") and path.is_file()
    )


def _config_dtype(model_dir: Path) -> str:
    """Return the dtype that config.json gives the checkpoint, F32 if it does not say."""
    try:
        config = msgspec.json.decode((model_dir / "config.json").read_bytes(), type=dict[str, msgspec.Raw])
        name = msgspec.json.decode(config.get("dtype", config.get("torch_dtype", msgspec.Raw(b'""'))))
    except (OSError, msgspec.DecodeError, RecursionError):
        return "F32"
    return SERVING.get(name, "F32") if isinstance(name, str) else "F32"
