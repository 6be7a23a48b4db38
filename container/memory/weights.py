"""The weights of a checkpoint as a mapping from name to tensor, served in place from the mapped file.

    open_weights(folder) ──> WeightMap ──close──> (nothing mapped) ──open──> WeightMap, the same object

A WeightMap is handed to a handler once and lives as long as the model is registered: sinking closes it, rising opens it
again, and what a closed one remembers is its paths. No descriptor stays open; each file is one private mapping, which
goes with the last tensor on it. A stray write changes a private page of this process, never the file; an overwritten
or truncated file does change what is mapped (or kills with SIGBUS), hence ``check`` before each batch.

Copied instead of mapped: what is served in another dtype, and tensors that a careless writer put at an odd address.
"""

from __future__ import annotations

import functools
import pickle
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from container.errors import BadArchive
from container.memory.mapped import Identity, MappedFile, identities, wait_until_quiet
from container.memory.mapped import identity as _identity
from container.memory.sizes import Checkpoint, TensorInfo, find_checkpoint, read_header, serving_dtype
from container.memory.tiers import pack
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
_STORED = {torch_dtype: name for name, torch_dtype in TORCH.items()}

#: A file that was written less than this ago may be written on, or written again in the same tick of its clock.
QUIET_S = 0.01
#: After a change was noticed whoever writes may not be done: this long nothing must have been written.
CHANGED_QUIET_S = 0.05
#: What is left of a map after sharing moves off the file if it is at most this part of the model: one eighth.
_MOVED_PART = 8


class SharedPart(Protocol):
    """Memory that several maps have tensors in (``memory/sharing``); it lives as long as one of them refers to it."""

    @property
    def id(self) -> str:
        """The ledger's name of the segment."""

    @property
    def bytes(self) -> int:
        """What it takes, once."""


class WeightsChanged(Exception):
    """A file under a model is not the one that was opened: close the map and load the model anew. No caller's fault."""


class WeightsClosed(RuntimeError):
    """A tensor was asked of a map that is closed: the model was not held while it ran. A mistake of ours."""


class WeightMap(Mapping[str, torch.Tensor]):
    """name -> tensor of one checkpoint, while open. Look-ups from any thread, open and close from one at a time.

    Tensors never require a gradient. Keep none beyond the call they were looked up for.
    """

    def __init__(self, model_dir: Path, dtype: str, device: str, allow_pickle: bool) -> None:
        self._checkpoint: Checkpoint = find_checkpoint(model_dir)
        if self._checkpoint.kind == "pickle" and not allow_pickle:
            raise BadArchive(
                f"the weights are a pickle ({self._checkpoint.files[0].name}) and BERTH_ALLOW_PICKLE is off; "
                "convert them to safetensors"
            )
        self._dtype = dtype
        self._device = device
        self._identities: tuple[Identity, ...] = ()
        self._files: list[MappedFile] = []
        self._tensors: dict[str, torch.Tensor] | None = None
        self._own_bytes = 0
        self._shared: tuple[SharedPart, ...] = ()
        self._moved: frozenset[str] = frozenset()
        self._mapped = False
        self._watched = False
        self._lock = threading.Lock()
        #: What ``memory/sharing`` has sampled so far, salt -> tensor -> fingerprint; forgotten once it has joined.
        self.fingerprints: dict[str, dict[str, bytes]] = {}

    # ------------------------------------------------------------- as mapping

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._open_tensors()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._open_tensors())

    def __len__(self) -> int:
        return len(self._open_tensors())

    def _open_tensors(self) -> dict[str, torch.Tensor]:
        if self._tensors is None:
            raise WeightsClosed(f"the weights in {self._checkpoint.files[0].name} are on disk; open the map first")
        return self._tensors

    # ---------------------------------------------------------- life and death

    def open(self) -> None:
        """Map the files and make the views; nothing happens if open.

        Raises BadArchive for files that cannot be served, WeightsChanged if they are not those of the first time.
        """
        if self._tensors is not None:
            return
        before = identities(self._checkpoint.files)
        if self._identities and before != self._identities:
            raise WeightsChanged(self._changed(before))
        read = _read_pickle if self._checkpoint.kind == "pickle" else _map_file
        files: list[MappedFile] = []
        tensors: dict[str, torch.Tensor] = {}
        for path, opened_as in zip(self._checkpoint.files, before, strict=True):
            found, mapped = read(path)
            files.append(MappedFile(path, opened_as, mapped))
            tensors |= found
        tensors, self._own_bytes, self._mapped = _serve(tensors, self._dtype, self._device)
        after = identities(self._checkpoint.files)
        if before != after:
            raise WeightsChanged(self._changed(after))
        self._tensors, self._identities, self._watched = tensors, after, True
        self._files = files if self._mapped else []

    def close(self) -> None:
        """Let go of every tensor and mapping; memory is back once nobody else holds a tensor."""
        for file in self._files:
            file.forget_pages()
        with self._lock:
            self._tensors, self._shared, self._moved, self._files = None, (), frozenset(), []
            self.fingerprints = {}

    def check(self) -> None:
        """Raise WeightsChanged if a file is not the one that was opened. One stat (2 µs) a file.

        A map that was moved off its files (``rebind``) does not depend on them and always passes.
        """
        if not self._watched:
            return
        for path, opened_as in zip(self._checkpoint.files, self._identities, strict=True):
            if _identity(path) != opened_as:
                raise WeightsChanged(f"{path.name} was changed, replaced or removed under a loaded model")

    # ---------------------------------------------------------------- sharing

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors as they are now, {} if closed."""
        return dict(self._tensors or {})

    def own_tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that are this map's alone, {} if closed."""
        with self._lock:
            return {name: tensor for name, tensor in (self._tensors or {}).items() if name not in self._moved}

    def rebind(self, equal: Mapping[str, torch.Tensor], parts: Iterable[SharedPart]) -> bool:
        """Serve ``equal`` (the same bytes, elsewhere) from here on; ``parts``, in which they lie, are held while open.

        What is left stays in the file, or, if it is little (a head), moves into memory of its own, so that the file
        is let go. Calls that run keep the tensors they looked up. Returns False, and does nothing, if closed.
        """
        with self._lock:
            if self._tensors is None:
                return False
            moved = self._moved | equal.keys()
            rest = {name: tensor for name, tensor in self._tensors.items() if name not in moved}
            rest_bytes = sum(tensor.nbytes for tensor in rest.values())
            little = rest_bytes * _MOVED_PART <= sum(tensor.nbytes for tensor in self._tensors.values())
            if self._mapped and not little:
                self._own_bytes = rest_bytes
            else:
                block, rest = pack(rest)
                self._own_bytes, self._mapped, self._watched, self._files = block.numel(), False, False, []
            self._tensors = {name: equal.get(name, rest.get(name, old)) for name, old in self._tensors.items()}
            self._moved = moved
            self._shared = (*self._shared, *parts)
            return True

    # ---------------------------------------------------------------- figures

    @property
    def bytes(self) -> int:
        """What the tensors take, each piece of memory counted once; of the last time it was open."""
        return self._own_bytes + sum(part.bytes for part in self._shared)

    @property
    def own_bytes(self) -> int:
        """The part of ``bytes`` that is this map's alone."""
        return self._own_bytes

    @property
    def mapped_bytes(self) -> int:
        """What of ``own_bytes`` lies in the files, and counts as free memory to the machine."""
        return self._own_bytes if self._mapped and self._tensors is not None else 0

    @property
    def shared(self) -> tuple[SharedPart, ...]:
        """What this map's tensors lie in beside its own memory."""
        return self._shared

    @property
    def identity(self) -> tuple[object, ...]:
        """What the contents are known by: the files as they were when opened, and the serving dtype asked for."""
        return (*self._identities, self._dtype)

    @property
    def is_open(self) -> bool:
        """Can tensors be looked up?"""
        return self._tensors is not None

    def _changed(self, now: tuple[Identity, ...]) -> str:
        pairs = zip(self._checkpoint.files, self._identities or now, now, strict=True)
        names = [path.name for path, before, after in pairs if before != after]
        return f"{', '.join(names) or 'a weight file'} was changed while it was being opened, or since it was loaded"


def open_weights(
    model_dir: Path, dtype: str = "", device: str = "cpu", *, allow_pickle: bool = False, quiet_s: float = QUIET_S
) -> WeightMap:
    """Return the open WeightMap of the checkpoint right under ``model_dir``.

    dtype: "float32", "bfloat16", "float16", or "" for ``sizes.serving_dtype``'s choice. device: "cpu" serves from
    the mapping, "cuda:0" from one block there. quiet_s: files younger than this are waited for, 2 s at most.
    Raises BadArchive.
    """
    for _ in range(3):
        weights = WeightMap(model_dir, dtype, device, allow_pickle)
        try:
            wait_until_quiet(find_checkpoint(model_dir).files, quiet_s)
            weights.open()
        except WeightsChanged:
            continue
        return weights
    raise BadArchive("the weight files keep changing while they are being read; finish writing them, then load again")


#: Tensors, and what of their memory lies in a mapping of the file: nothing else may ever be unmapped or covered.
_Read = tuple[dict[str, torch.Tensor], list[torch.UntypedStorage]]


def _map_file(path: Path, only_mapped: bool = False) -> _Read:
    """Return views on a private mapping of ``path``. The mapping is torch's: no descriptor, gone with its last view."""
    infos = read_header(path)
    size = max((info.stop for info in infos.values()), default=0)
    if size == 0:
        return {}, []
    try:
        storage = cast(torch.UntypedStorage, torch.UntypedStorage.from_file(str(path), False, size))
    except RuntimeError as error:  # shorter than its header said a moment ago, or gone
        if "allocate memory" in str(error):
            raise MemoryError(f"no room in the address space for {path.name}") from error
        raise WeightsChanged(f"{path.name} changed while it was being opened") from error
    views = {name: _view(storage, info) for name, info in infos.items() if info.is_aligned or not only_mapped}
    return views, [storage]


def _view(storage: torch.UntypedStorage, info: TensorInfo) -> torch.Tensor:
    dtype = TORCH[info.dtype]
    if not info.is_aligned:
        return torch.asarray(storage[info.start : info.stop], dtype=torch.uint8).clone().view(dtype).view(info.shape)
    strides, step = [], 1
    for length in reversed(info.shape):
        strides.append(step)
        step *= length
    return torch.empty(0, dtype=dtype).set_(storage, info.start // dtype.itemsize, info.shape, tuple(reversed(strides)))


def _read_pickle(path: Path) -> _Read:
    state, mapped = _load_pickle(path)
    while isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BadArchive(f"{path.name} holds no state_dict: expected names and tensors; save model.state_dict()")
    tensors = {str(name): tensor.detach() for name, tensor in state.items()}
    odd = [name for name, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized]
    if odd:
        raise BadArchive(f"the weights have sparse or quantised tensors ({odd[0]}); only dense ones can be served")
    return tensors, [tensor.untyped_storage() for tensor in tensors.values()] if mapped else []


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


def _serve(tensors: dict[str, torch.Tensor], dtype: str, device: str) -> tuple[dict[str, torch.Tensor], int, bool]:
    """Return the tensors as they are served on ``device``, the bytes they take, and whether any stayed where it was."""

    def _served(tensor: torch.Tensor) -> torch.dtype:
        stored = _STORED.get(tensor.dtype, "")
        return TORCH[serving_dtype(stored, dtype, device)] if stored else tensor.dtype

    move = tensors if device != "cpu" else {n: t for n, t in tensors.items() if _served(t) != t.dtype}
    packed = pack(move, device, _served)
    rest = {name: tensor for name, tensor in tensors.items() if name not in move}
    mapped = {(tensor.data_ptr(), tensor.nbytes) for tensor in rest.values()}
    total = packed.block.numel() + sum(nbytes for _, nbytes in mapped)
    return {name: packed.tensors[name] if name in move else rest[name] for name in tensors}, total, bool(rest)


def read_stored(checkpoint: Checkpoint, *, mapped: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors as they are stored, mapped where the format allows it. Raises BadArchive, WeightsChanged.

    mapped: of safetensors only those that take no memory of their own.
    """
    read = _read_pickle if checkpoint.kind == "pickle" else functools.partial(_map_file, only_mapped=mapped)
    return {name: tensor for path in checkpoint.files for name, tensor in read(path)[0].items()}
