"""Weights from their files into a block: parallel reads past the page tables, converted on the way where asked.

    Source(folder) ──layout──> how large the block is ──read_into(block)──> the bytes are there

For tiers that keep bytes of their own (pinned RAM under a GPU). What is stored in the serving dtype is read straight to
its place with preadv, pieces of 8 MiB on several threads; the rest is converted out of a mapping. On a machine without
a GPU nothing is read at all: ``memory/weights`` serves the mapping.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from pathlib import Path
from typing import NamedTuple

import torch

from container.errors import BadArchive, LargerThanTier
from container.memory.likeness import fingerprints
from container.memory.mapped import GONE, WeightsChanged, identities, wait_until_quiet
from container.memory.sizes import checkpoint_bytes, find_checkpoint, read_header, serving_dtype
from container.memory.stored import STORED, TORCH, read_stored
from container.memory.tiers import Layout, Shape, lay_out, tie_of, views

_PIECE_BYTES = 8 << 20


class _Lie(NamedTuple):
    """Where a tensor lies in a file, in its serving dtype already."""

    path: Path
    start: int


class Source:
    """The checkpoint right under ``folder`` as it would be served on ``device`` ("cpu", "cuda:0").

    limit: bytes over which a pickle is not even looked at, for that reads all of it. quiet_s: files younger than this
    are waited for. Raises BadArchive for files that cannot be served, LargerThanTier.
    """

    def __init__(
        self,
        folder: Path,
        dtype: str,
        device: str,
        *,
        allow_pickle: bool,
        limit: int | None = None,
        quiet_s: float = 0.0,
    ) -> None:
        checkpoint = find_checkpoint(folder)
        if checkpoint.kind == "pickle" and not allow_pickle:
            raise BadArchive(
                f"the weights are a pickle ({checkpoint.files[0].name}) and BERTH_ALLOW_PICKLE is off; "
                "convert them to safetensors"
            )
        if checkpoint.kind == "pickle" and limit is not None:
            _check_size(checkpoint_bytes(folder, dtype, device), limit)
        wait_until_quiet(checkpoint.files, quiet_s)
        self._checkpoint = checkpoint
        self._all: dict[str, torch.Tensor] | None = None
        self._files = checkpoint.files
        self.identity = (*identities(self._files), dtype)
        self._lies: dict[str, _Lie] = {}
        shapes: dict[str, Shape] = {}
        if checkpoint.kind == "safetensors":
            shapes = self._look(dtype, device)
        if checkpoint.kind == "pickle":
            for name, tensor in self._stored().items():
                known = STORED.get(tensor.dtype)
                served = TORCH[serving_dtype(known, dtype, device)] if known is not None else tensor.dtype
                shapes[name] = Shape(served, tuple(tensor.shape), tie_of(tensor))
        self.layout: Layout = lay_out(shapes)

    def forget(self) -> None:
        """Let go of the mapped files; what they were stays known."""
        self._all = None

    def is_fresh(self) -> bool:
        """Whether the files are those that were looked at, or gone: what was read of them is still theirs."""
        return all(now in (then, GONE) for now, then in zip(identities(self._files), self.identity[:-1], strict=True))

    def _look(self, dtype: str, device: str) -> dict[str, Shape]:
        """Read the headers: every tensor as it will be served, and the places of those stored that way already."""
        shapes = {}
        for path in self._files:
            for name, info in read_header(path).items():
                served = serving_dtype(info.dtype, dtype, device)
                shapes[name] = Shape(TORCH[served], info.shape)
                if served == info.dtype:
                    self._lies[name] = _Lie(path, info.start)
        return shapes

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor that has a fingerprint as it will be served, on the CPU, contiguous."""
        return self._stored()[name].to(self.layout.shapes[name].dtype).contiguous()

    def fingerprints(self, salt: str) -> dict[str, bytes]:
        """Return a fingerprint of each tensor that can be looked at in its file; equal ones are worth comparing."""
        shapes = self.layout.shapes
        served: defaultdict[torch.dtype, dict[str, torch.Tensor]] = defaultdict(dict)
        for name, tensor in self._stored().items():
            served[shapes[name].dtype][name] = tensor.contiguous()
        taken = [fingerprints(tensors, f"{salt}\0{dtype}") for dtype, tensors in served.items()]
        return {name: print_ for prints in taken for name, print_ in prints.items()}

    def _stored(self) -> dict[str, torch.Tensor]:
        if self._all is None:
            self._all = read_stored(self._checkpoint, mapped=True)
        return self._all

    def read_into(self, block: torch.Tensor, layout: Layout, readers: Executor) -> None:
        """Fill ``block`` (uint8, CPU, ``layout.bytes``) with the tensors of ``layout``, some or all of this source's.

        Raises WeightsChanged if the files are not those that the header was read from, OSError if reading fails.
        """
        files: dict[Path, int] = {}
        jobs: list[Future[None]] = []
        try:
            for path in self._files:
                files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            raw = block.numpy().data
            for piece in self._pieces(raw, layout, files):
                jobs.append(readers.submit(_read, *piece))
            self._convert(views(block, layout))
        finally:  # whatever went wrong, nobody writes into a block, or reads a file, that is given up
            wait(jobs)
            for descriptor in files.values():
                os.close(descriptor)
        for job in jobs:
            job.result()
        if identities(self._files) != self.identity[:-1]:
            raise WeightsChanged("the weight files were changed while they were being read")

    def _convert(self, targets: dict[str, torch.Tensor]) -> None:
        """Fill those of ``targets`` that cannot be read straight to their place."""
        names = [name for name in targets if name not in self._lies]
        if not names:
            return
        stored = self._stored()
        if not all(name in stored for name in names):  # some lie where no view can start, and are copied for it
            stored = read_stored(self._checkpoint)
        for name in names:
            if stored[name].numel():
                targets[name].copy_(stored[name])

    def _pieces(
        self, raw: memoryview, layout: Layout, files: dict[Path, int]
    ) -> Iterator[tuple[int, list[tuple[memoryview, int]]]]:
        """Yield (descriptor, [(target, offset in the file)]) of about 8 MiB each."""
        batch: list[tuple[memoryview, int]] = []
        size = descriptor = 0
        for name, lie in self._lies.items():
            if name not in layout.starts:
                continue
            start, nbytes = layout.starts[name], layout.shapes[name].bytes
            for at in range(0, nbytes, _PIECE_BYTES):
                length = min(_PIECE_BYTES, nbytes - at)
                if batch and (files[lie.path] != descriptor or size + length > _PIECE_BYTES):
                    yield descriptor, batch
                    batch, size = [], 0
                descriptor = files[lie.path]
                batch.append((raw[start + at : start + at + length], lie.start + at))
                size += length
        if batch:
            yield descriptor, batch


def _check_size(nbytes: int, limit: int) -> None:
    if nbytes > limit:
        raise LargerThanTier(
            f"the weights are a pickle that takes about {nbytes} bytes and the limit of the device is {limit}: it can "
            f"never fit; raise BERTH_MEMORY_LIMIT to at least {nbytes}, or serve it in a smaller dtype"
        )


def _read(descriptor: int, pieces: Iterable[tuple[memoryview, int]]) -> None:
    for target, offset in pieces:
        done = 0
        while done < len(target):
            got = os.preadv(descriptor, [target[done:]], offset + done)
            if got == 0:
                raise WeightsChanged("a weight file became shorter while it was being read")
            done += got
