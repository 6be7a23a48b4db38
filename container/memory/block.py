"""One block of weights and who wants it where, and a model's tensors as its handler sees them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from container.memory.arena import Event
from container.memory.mapped import Verified
from container.memory.reading import Source
from container.memory.regions import Place
from container.memory.tiers import Layout
from container.memory.weights import WeightsClosed


class Views(Mapping[str, torch.Tensor]):
    """name -> tensor of one model, while it lies on the device (or is being opened). Keep none beyond a call."""

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] | None = None
        #: What the tensors take, shared ones included.
        self.bytes = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._bound()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._bound())

    def __len__(self) -> int:
        return len(self._bound())

    def rebind(self, tensors: dict[str, torch.Tensor] | None) -> None:
        """Serve ``tensors`` from here on; None = the model has left the device."""
        self._tensors = tensors

    def _bound(self) -> dict[str, torch.Tensor]:
        if self._tensors is None:
            raise WeightsClosed("the weights are not on the device: the model was not held while it ran")
        return self._tensors


@dataclass(slots=True, eq=False)
class Block:
    """Tensors that move together. Users: the models that want it on that tier."""

    id: str
    layout: Layout
    #: tensor -> fingerprint; {} where nothing is shared.
    prints: dict[str, bytes]
    host: torch.Tensor | None = None
    #: None where the host copy is not in the arena (there was no room for it, and it goes after the copy).
    place: Place | None = None
    device: Place | None = None
    arrived: Event | None = None
    host_users: set[str] = field(default_factory=set)
    device_users: set[str] = field(default_factory=set)
    #: Sources whose tensors were compared with these, byte for byte.
    verified: Verified = field(default_factory=Verified)
    moving: threading.Lock = field(default_factory=threading.Lock)
    #: Held by who fills it in RAM: those who want it there too wait, and compare.
    reading: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True, eq=False)
class Model:
    """One model. parts: its blocks, each with {name in the model: name in the block}. is_read: all of it was in RAM."""

    source: Source
    folder: Path
    parts: list[tuple[Block, dict[str, str]]]
    views: Views = field(default_factory=Views)
    is_read: bool = False
