"""The weights of a checkpoint as a mapping from name to tensor, served in place from the mapped file.

    open_weights(folder) ──> WeightMap ──close──> (nothing mapped) ──open──> WeightMap, the same object

A WeightMap is handed to a handler once and lives as long as the model is registered: sinking closes it, rising opens it
again, and what a closed one remembers is its paths, what its files were, and, for sharing, 16 bytes a tensor. What is
served in place is not read again: an unchanged file has the header it had.

No descriptor stays open; each file is one private mapping, which goes with the last tensor on it. A stray write changes
a private page of this process, never the file; an overwritten or truncated file does change what is mapped (or kills
with SIGBUS), hence ``check`` before each batch.

Copied instead of mapped: what is served in another dtype, and tensors that a careless writer put at an odd address.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from container.errors import BadArchive
from container.memory import sizes, stored
from container.memory.mapped import Identity, MappedFile, WeightsChanged, identities, wait_until_quiet
from container.memory.mapped import identity as _identity
from container.memory.pieces import Pieces
from container.memory.sizes import Checkpoint, Header, find_checkpoint, serving_dtype
from container.memory.stored import STORED, TORCH
from container.memory.tiers import pack

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
        #: Of what is served in place, once opened: what the headers are known by, and the bytes of all tensors.
        self._headers: list[bytes] = []
        self._file_bytes = 0
        self._shared: tuple[SharedPart, ...] = ()
        self._own: frozenset[str] | None = None  # names of those that lie in no shared part, None = all
        self._mapped = False
        self._watched = False
        self._lock = threading.Lock()
        #: What ``memory/sharing`` has sampled of these files: salt -> the fingerprints, in the order of the tensors.
        self.fingerprints: dict[str, bytes] = {}

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
        pickled = self._checkpoint.kind == "pickle"
        headers = [] if pickled else self._read_headers()
        files: list[MappedFile] = []
        tensors: dict[str, torch.Tensor] = {}
        for place, (path, opened_as) in enumerate(zip(self._checkpoint.files, before, strict=True)):
            found = stored.read_pickle(path) if pickled else stored.map_file(path, headers[place])
            files.append(MappedFile(path, opened_as, found.mapped))
            tensors |= found.tensors
        if self.is_in_place:
            self._own_bytes, self._mapped = self._file_bytes, True
        else:
            served = _serve(tensors, self._dtype, self._device)
            tensors, self._own_bytes, self._mapped = served.tensors, served.bytes, served.is_mapped
            if served.is_all_mapped and headers and all(header.is_aligned for header in headers):
                self._headers, self._file_bytes = [header.key for header in headers], served.bytes
        after = identities(self._checkpoint.files)
        if before != after:
            self._headers = []
            raise WeightsChanged(self._changed(after))
        self._tensors, self._identities, self._watched = tensors, after, True
        self._files = files if self._mapped else []

    def _read_headers(self) -> list[Header]:
        """Return the headers of the files, read only where they are not known any more."""
        known = [sizes.known_header(key) for key in self._headers] or [None] * len(self._checkpoint.files)
        return [
            sizes.read_header(path) if header is None else header
            for path, header in zip(self._checkpoint.files, known, strict=True)
        ]

    def read_ahead(self, part: int = 0, parts: int = 1, into: Pieces | None = None) -> None:
        """Have the files read now, on the caller's thread; see ``mapped.MappedFile``."""
        for file in list(self._files):
            file.read_ahead(part, parts, into)

    def give_back(self) -> None:
        """Be served from the page cache where that was read past: copies of tensors are going to be made."""
        for file in list(self._files):
            file.give_back()

    def close(self) -> None:
        """Let go of every tensor and mapping; memory is back once nobody else holds a tensor."""
        for file in self._files:
            file.forget_pages()
        with self._lock:
            self._tensors, self._shared, self._own, self._files = None, (), None, []

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
            tensors = self._tensors or {}
            return {name: tensors[name] for name in tensors if self._own is None or name in self._own}

    def rebind(self, equal: dict[str, torch.Tensor], parts: Iterable[SharedPart]) -> bool:
        """Serve ``equal`` (the same bytes, elsewhere) from here on; ``parts``, in which they lie, are held while open.

        What is left stays in the file, or, if it is little (a head), moves into memory of its own, so that the file
        is let go. Calls that run keep the tensors they looked up. Where nothing is left, ``equal`` itself is kept: many
        maps may have it, and none writes to it. Returns False, and does nothing, if closed.
        """
        with self._lock:
            if self._tensors is None:
                return False
            own = (self._tensors.keys() if self._own is None else self._own) - equal.keys()
            rest = {name: tensor for name, tensor in self._tensors.items() if name in own}
            rest_bytes = sum(tensor.nbytes for tensor in rest.values())
            little = rest_bytes * _MOVED_PART <= sum(tensor.nbytes for tensor in self._tensors.values())
            if self._mapped and not little:
                self._own_bytes = rest_bytes
            else:
                block, rest = pack(rest)
                self._own_bytes, self._mapped, self._watched, self._files = block.numel(), False, False, []
            if list(equal) != list(self._tensors):  # something is left, or it would change their order
                equal = {name: equal.get(name, rest.get(name, old)) for name, old in self._tensors.items()}
            self._tensors, self._own = equal, frozenset(own)
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
        if not self._mapped or self._tensors is None:
            return 0
        return max(0, self._own_bytes - sum(file.laid_bytes for file in list(self._files)))

    @property
    def shared(self) -> tuple[SharedPart, ...]:
        """What this map's tensors lie in beside its own memory."""
        return self._shared

    @property
    def identity(self) -> tuple[object, ...]:
        """What the contents are known by: the files as they were when opened, and the serving dtype asked for."""
        return (*self._identities, self._dtype)

    @property
    def is_in_place(self) -> bool:
        """Is all of it served from its files as they lie, so that opening it again reads nothing?"""
        return bool(self._headers)

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


class _Served(NamedTuple):
    """Tensors as they are served, the bytes that they take, whether any of them, and all, stayed where they were."""

    tensors: dict[str, torch.Tensor]
    bytes: int
    is_mapped: bool
    is_all_mapped: bool


def _serve(tensors: dict[str, torch.Tensor], dtype: str, device: str) -> _Served:
    """Return ``tensors`` as they are served on ``device``."""

    def _served(tensor: torch.Tensor) -> torch.dtype:
        known = STORED.get(tensor.dtype, "")
        return TORCH[serving_dtype(known, dtype, device)] if known else tensor.dtype

    move = tensors if device != "cpu" else {n: t for n, t in tensors.items() if _served(t) != t.dtype}
    packed = pack(move, device, _served)
    rest = {name: tensor for name, tensor in tensors.items() if name not in move}
    mapped = {(tensor.data_ptr(), tensor.nbytes) for tensor in rest.values()}
    total = packed.block.numel() + sum(nbytes for _, nbytes in mapped)
    served = {name: packed.tensors[name] if name in move else rest[name] for name in tensors}
    return _Served(served, total, bool(rest), bool(rest) and not move)
