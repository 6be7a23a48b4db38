"""Data types of the KServe v2 protocol as numpy's, and back (Open Inference Protocol, "Tensor Data Types").

Two have no numpy type of their own. BYTES (text or binary of any length) is ``object`` here, an element one ``bytes``.
BF16 is ``uint16`` holding the upper half of a float32, so that bytes travel unchanged: ``(a.astype(np.uint32) <<
16).view(np.float32)`` gives numbers, ``torch.from_numpy(a).view(torch.bfloat16)`` the tensor. The way back is
therefore not told by the array: uint16 is named UINT16, and who holds BF16 says so himself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from container.errors import BadAnswer, BadInput

_NUMPY: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
    "BYTES": np.dtype(object),
}
NAMES = tuple(_NUMPY)
_BY_NUMPY = {dtype: name for name, dtype in _NUMPY.items() if name != "BF16"}


def to_numpy(name: str) -> np.dtype[Any]:
    """Return the numpy dtype of a v2 name, little-endian as on the wire. Raises BadInput naming the known ones."""
    dtype = _NUMPY.get(name)
    if dtype is None:
        raise BadInput(f"unknown datatype {name!r}; known: {', '.join(NAMES)}")
    return dtype


def to_name(dtype: np.dtype[Any]) -> str:
    """Return the v2 name of a numpy dtype in any byte order; text is BYTES. Raises BadAnswer for complex and others."""
    if dtype.kind in "SU":
        return "BYTES"
    name = _BY_NUMPY.get(dtype.newbyteorder("<"))
    if name is None:
        raise BadAnswer(f"the model answered with {dtype} values, which have no v2 datatype; known: {', '.join(NAMES)}")
    return name


def item_bytes(name: str) -> int | None:
    """Return the bytes of one element on the wire; None for BYTES, whose elements say their length. Raises BadInput."""
    dtype = to_numpy(name)
    return None if dtype.hasobject else dtype.itemsize
