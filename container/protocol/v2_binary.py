"""Tensors as bytes behind a JSON header: the binary tensor data extension of the KServe v2 protocol. Pure.

    <N bytes of JSON><tensor><tensor>...     N: see ``v2_header``

Tensors lie in the order in which the JSON names them: little-endian, row-major, unpadded; BOOL a byte; an element of
BYTES is four bytes of length and then itself. Sizes are believed in nothing: what is promised is compared with what is
there before anything is allocated. Source: Triton's docs/protocol/extension_binary_data.md (contract.md 3a).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from container.errors import BadRequest
from container.protocol import dtypes

Array = np.ndarray[Any, Any]

_LENGTH = struct.Struct("<I")
MAX_DIMENSIONS = 32


def split(body: bytes, header_bytes: int) -> tuple[bytes, memoryview]:
    """Return the JSON part and what follows it. Raises BadRequest when the body is shorter than its header."""
    if header_bytes > len(body):
        raise BadRequest(f"the JSON part would have {header_bytes} bytes, but the whole body has {len(body)}")
    return body[:header_bytes], memoryview(body)[header_bytes:]


def count_of(name: str, shape: Sequence[int]) -> int:
    """Return the elements of ``shape``. Raises BadRequest for more than 32 dimensions."""
    if len(shape) > MAX_DIMENSIONS:
        raise BadRequest(f"tensor {name!r} has {len(shape)} dimensions; at most {MAX_DIMENSIONS} are read")
    return math.prod(shape)


def shaped(name: str, flat: Array, shape: Sequence[int]) -> Array:
    """Return ``flat`` in ``shape``, which has as many elements. Raises BadRequest for what numpy has no room for."""
    try:
        return flat.reshape(shape)
    except ValueError as error:  # (0, 10**9, 10**9, 10**9): no elements, yet too large
        raise BadRequest(f"tensor {name!r} cannot have shape {list(shape)}: {error}") from error


def read(name: str, raw: memoryview, datatype: str, shape: Sequence[int]) -> Array:
    """Return the tensor in ``raw``: a copy in ``shape``, BYTES as ``object``. Raises BadRequest, BadInput."""
    count = count_of(name, shape)
    item_bytes = dtypes.item_bytes(datatype)
    if item_bytes is None:
        return shaped(name, _strings(name, raw, count), shape)
    if count * item_bytes != len(raw):
        raise BadRequest(
            f"tensor {name!r} of {datatype} {list(shape)} takes {count * item_bytes} bytes, {len(raw)} are there"
        )
    if datatype == "BOOL":
        return shaped(name, np.frombuffer(raw, np.uint8) != 0, shape)
    # A copy: the bytes of a body lie at any address, and torch warns of arrays that cannot be written.
    return shaped(name, np.frombuffer(raw, dtypes.to_numpy(datatype)).copy(), shape)


def _strings(name: str, raw: memoryview, count: int) -> Array:
    """The elements of a BYTES tensor."""
    if count * _LENGTH.size > len(raw):  # before an array is made for what may be promised only
        raise BadRequest(f"tensor {name!r} has {count} elements of BYTES, but only {len(raw)} bytes are there")
    found = np.empty(count, object)
    at = 0
    for index in range(count):
        start = at + _LENGTH.size
        if start > len(raw):
            raise BadRequest(f"tensor {name!r} ends before element {index} of {count}")
        at = start + _LENGTH.unpack_from(raw, at)[0]
        if at > len(raw):
            raise BadRequest(f"element {index} of tensor {name!r} reaches over the {len(raw)} bytes of the tensor")
        found[index] = bytes(raw[start:at])
    if at != len(raw):
        raise BadRequest(f"tensor {name!r} has {len(raw) - at} bytes more than its {count} elements")
    return found


def write(data: Array) -> bytes:
    """Return the bytes of a tensor; elements of an ``object`` array are bytes or text."""
    if data.dtype.hasobject:
        parts = [each.encode() if isinstance(each, str) else bytes(each) for each in data.ravel()]
        return b"".join(part for each in parts for part in (_LENGTH.pack(len(each)), each))
    return np.ascontiguousarray(data, data.dtype.newbyteorder("<")).tobytes()
