"""Finding a network's tensors in a checkpoint, whatever prefix and old spelling it was saved with."""

from __future__ import annotations

import functools
import sys
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar, cast

from torch import Tensor

from container.errors import BadArchive
from container.nets.config import Unsupported

#: Checkpoints converted from TensorFlow years ago name the two halves of a LayerNorm so.
_OLD = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


def _spelt(name: str, prefixes: Sequence[str], weights: Mapping[str, Tensor]) -> str:
    for prefix in prefixes:
        if prefix + name in weights:
            return prefix + name
        for new, old in _OLD.items():
            older = prefix + name.removesuffix(new) + old
            if name.endswith(new) and older in weights:
                return older
    raise BadArchive(
        f"the weights have no tensor {name!r} (looked for with the prefixes {', '.join(map(repr, prefixes))})"
    )


def names(
    weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], prefixes: Sequence[str]
) -> dict[str, str]:
    """Return our name -> the checkpoint's key, for each name of ``shapes``, its shape checked.

    prefixes: what a checkpoint may put before a name, tried in order ("bert.", "").
    Raises BadArchive for a tensor that is missing or of another shape than config.json says, Unsupported when the
    tensors are not all of one floating dtype (the functions compute in the dtype of the weights).
    """
    # The checkpoint's own string, which memory/sizes has interned: one for all models with such a tensor.
    keys = {name: sys.intern(_spelt(name, prefixes, weights)) for name in shapes}
    dtypes = set()
    for name, key in keys.items():
        tensor = weights[key]
        if tuple(tensor.shape) != shapes[name]:
            raise BadArchive(
                f"the weights' {key} has shape {list(tensor.shape)}, config.json asks for {list(shapes[name])}"
            )
        dtypes.add(tensor.dtype)
    if len(dtypes) > 1 or not all(dtype.is_floating_point for dtype in dtypes):
        raise Unsupported(f"weights of {', '.join(sorted(str(dtype) for dtype in dtypes))}")
    return keys


_Layout = TypeVar("_Layout", bound=Hashable)


def once(layout: _Layout) -> _Layout:
    """Return ``layout``, or the equal one that another model has: copies of a network have one for all."""
    return cast(_Layout, _first(layout))


@functools.lru_cache(maxsize=64)
def _first(layout: Hashable) -> Hashable:
    return layout
