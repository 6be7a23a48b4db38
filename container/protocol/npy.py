"""numpy's files, .npy and .npz, read without trusting them (numpy.lib.format has the layout).

numpy's own reader evaluates the header as Python and allocates what the header promises before it looks whether the
bytes are there; a body of 100 bytes may not cost gigabytes. Only plain dtypes: no pickles, no records.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from container.errors import BadRequest

Array = np.ndarray[Any, Any]

#: Bytes that an .npz may unpack to, all its arrays together: masks of zeros shrink a thousandfold, so do bombs.
MAX_UNPACKED_BYTES = 256 << 20
_MAX_MEMBERS = 1024
_MAX_DIMENSIONS = 32
#: As numpy.load's max_header_size; the headers it writes have 118.
_MAX_HEADER_BYTES = 10_000
_MAGIC = b"\x93NUMPY"
_DESCR = re.compile(r"""['"]descr['"]\s*:\s*['"]([<>|=]?[?biufcSU]\d*)['"]""")
_ORDER = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(\s*((?:\d{1,18}\s*,\s*)*(?:\d{1,18}\s*)?)\)""")


def read(body: bytes) -> Array:
    """Return the array in an .npy body: writable, in native byte order. Raises BadRequest."""
    if body[:6] != _MAGIC or len(body) < 12:
        raise BadRequest("the body is not an .npy file: it does not begin with \\x93NUMPY")
    wide = body[6] >= 2
    (length,) = struct.unpack_from("<I" if wide else "<H", body, 8)
    start = (12 if wide else 10) + length
    if length > _MAX_HEADER_BYTES:
        raise BadRequest(f"the .npy header says it has {length} bytes; at most {_MAX_HEADER_BYTES} are read")
    header = body[12 if wide else 10 : start].decode("latin-1")
    descr, order, shape = _DESCR.search(header), _ORDER.search(header), _SHAPE.search(header)
    if start > len(body) or descr is None or order is None or shape is None:
        raise BadRequest(
            "the .npy header cannot be used; arrays of bool, int, float, complex or text are read, "
            f"pickled objects and records are not: {header[:100]!r}"
        )
    return _array(body, start, descr[1], order[1] == "True", shape[1])


def _array(body: bytes, start: int, descr: str, fortran: bool, sizes: str) -> Array:
    try:
        dtype = np.dtype(descr)
        shape = tuple(int(size) for size in re.findall(r"\d+", sizes))
    except TypeError as error:
        raise BadRequest(f"the .npy dtype {descr!r} is not one of numpy's") from error
    promised = math.prod(shape) * dtype.itemsize
    if len(shape) > _MAX_DIMENSIONS or dtype.itemsize == 0 or promised != len(body) - start:
        raise BadRequest(
            f"the .npy header promises {promised} bytes (shape {shape[:_MAX_DIMENSIONS]}, dtype {dtype}), "
            f"{len(body) - start} are there"
        )
    if promised == 0:
        return _empty(shape, dtype, fortran)
    array = np.frombuffer(body, dtype, offset=start)
    if dtype.kind == "U" and int(array.view(dtype.byteorder + "u4").max()) > 0x10FFFF:
        raise BadRequest("the .npy holds text that is not Unicode")
    # The copy is not for its byte order alone: torch warns of arrays that cannot be written.
    return array.astype(dtype.newbyteorder("=")).reshape(shape, order="F" if fortran else "C")


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool) -> Array:
    try:
        return np.empty(shape, dtype.newbyteorder("="), order="F" if fortran else "C")
    except ValueError as error:  # (0, 10**17, 10**17): no bytes, yet too large for numpy
        raise BadRequest(f"the .npy shape {shape} is too large") from error


def read_many(body: bytes) -> dict[str, Array]:
    """Return the arrays in an .npz body by name. Raises BadRequest, also for over MAX_UNPACKED_BYTES of arrays."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as file:
            members = file.infolist()
            unpacked = sum(member.file_size for member in members)
            if unpacked > MAX_UNPACKED_BYTES or len(members) > _MAX_MEMBERS:
                raise BadRequest(
                    f"the .npz unpacks to {unpacked} bytes in {len(members)} arrays; "
                    f"at most {MAX_UNPACKED_BYTES} in {_MAX_MEMBERS} are read"
                )
            if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
                raise BadRequest("the .npz is compressed in a way numpy does not write")
            return {member.filename.removesuffix(".npy"): read(file.read(member)) for member in members}
    # What zipfile raises for files that are cut short, lie about offsets or are encrypted.
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError) as error:
        raise BadRequest(f"the body is not an .npz file: {error}") from error


def write(array: Array) -> bytes:
    """Return ``array`` as .npy. Raises ValueError for arrays of objects."""
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=False)
    return out.getvalue()


def write_many(arrays: Mapping[str, Array]) -> bytes:
    """Return ``arrays`` as .npz, uncompressed, each under its name."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, array in arrays.items():
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), write(array))
    return out.getvalue()
