"""Lists of token ids as the tensors of one run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from container.nets.packing import Pack


def _flat(sequences: Sequence[Sequence[int]], pack: Pack) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    flat = np.zeros(pack.rows, dtype=np.int64)
    tokens = pack.rows - pack.filler
    flat[:tokens] = np.fromiter(chain.from_iterable(sequences[index] for index in pack.order), np.int64, tokens)
    return flat


def end_to_end(sequences: Sequence[Sequence[int]], pack: Pack) -> Tensor:
    """Return the sequences of ``pack`` laid end to end: [rows] int64 on the CPU, 0 in the filler."""
    return torch.from_numpy(_flat(sequences, pack))


def positions(pack: Pack) -> Tensor:
    """Return each token's position in its own sequence, 0 in the filler: [rows] int64 on the CPU."""
    parts = [np.tile(np.arange(length), count) for count, length in pack.groups]
    return torch.from_numpy(np.concatenate([*parts, np.zeros(pack.filler, dtype=np.int64)]))


def side_by_side(sequences: Sequence[Sequence[int]], pack: Pack) -> tuple[Tensor, Tensor | None]:
    """Return the sequences of ``pack`` padded with 0 to the longest, [B, T] int64, and the mask [B, T] (None: full)."""
    longest = pack.groups[-1][1]
    ids = np.zeros((len(pack.order), longest), dtype=np.int64)
    lengths = np.array([len(sequences[index]) for index in pack.order])
    mask = np.arange(longest) < lengths[:, None]
    ids[mask] = np.fromiter(chain.from_iterable(sequences[index] for index in pack.order), np.int64, lengths.sum())
    return torch.from_numpy(ids), None if len(pack.groups) == 1 else torch.from_numpy(mask)
