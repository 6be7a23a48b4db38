"""Inference requests and answers of the KServe v2 protocol (Open Inference Protocol): bytes <-> tensors. Pure.

    {"id"?, "parameters"?, "inputs": [{"name", "shape", "datatype", "data"}], "outputs"?: [{"name", "parameters"?}]}
    {"model_name", "model_version", "id"?, "outputs": [{"name", "shape", "datatype", "data"}]}

``data`` may be flat or nested in any way: only the number of elements must be that of ``shape``, because published
clients nest one level less than the shape has. Instead of ``data`` a tensor may lie behind the JSON (``v2_binary``).
Values are taken as what they are, nothing is rounded: 1.5 and true are no INT32, 300 is no UINT8.
Does not cover: which inputs a model has (``handlers/tensors``), shared memory, the classification extension.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from container.errors import BadInput, BadRequest, NotAcceptable
from container.payload import JSON
from container.protocol import dtypes, v2_binary, v2_header

Array = np.ndarray[Any, Any]

_MAX_DEPTH = 33
_SPACE = b" \t\r\n"
#: numpy kind of a datatype -> what JSON must hold.
_ITEMS: dict[str, type] = {"b": bool, "i": int, "u": int, "f": float, "O": str}


class Tensor(NamedTuple):
    """One tensor. data: an array of ``shape``; BYTES is ``object``, an element ``bytes``; BF16 as in ``dtypes``."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Array


class Wanted(NamedTuple):
    """An output that the caller asks for, and whether as bytes behind the JSON."""

    name: str
    binary: bool


class Request(NamedTuple):
    """What a caller asks. outputs: None = all of them, as bytes if ``binary``. raw: the body is one tensor, no JSON."""

    inputs: list[Tensor]
    outputs: list[Wanted] | None = None
    binary: bool = False
    id: str = ""
    raw: bytes | None = None


class Reply(NamedTuple):
    """What a model answers: tensors, each with whether it goes as bytes behind the JSON."""

    model: str
    version: str
    outputs: list[tuple[Tensor, bool]]
    id: str = ""


_Size = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class _Input(msgspec.Struct):
    name: str
    shape: list[_Size]
    datatype: str
    data: msgspec.Raw = msgspec.Raw(b"")
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Input]
    outputs: list[_Output] | None = None
    id: str = ""
    parameters: dict[str, Any] = {}


_REQUEST = msgspec.json.Decoder(_Request)


def read(body: bytes, content_type: str) -> Request:
    """Return the Request in ``body``, binary if ``content_type`` says so, else JSON. Raises BadRequest, BadInput."""
    size = v2_header.header_size(content_type)
    if size == 0:
        return Request([], binary=True, raw=body)
    head, rest = (body, memoryview(b"")) if size is None else v2_binary.split(body, size)
    given = _decode(head)
    binary = _flag(given.parameters, "binary_data_output", "the request", default=False)
    names = [each.name for each in given.inputs]
    if len(set(names)) != len(names):
        raise BadRequest(f"an input is given twice: {', '.join(names)[:200]}")
    inputs, used = [], 0
    for each in given.inputs:
        nbytes = _binary_size(each, len(rest) - used)
        if nbytes is None:
            data = _from_json(each)
        else:
            data = v2_binary.read(each.name, rest[used : used + nbytes], each.datatype, each.shape)
            used += nbytes
        inputs.append(Tensor(each.name, each.datatype, tuple(each.shape), data))
    if used != len(rest):
        raise BadRequest(f"{len(rest)} bytes follow the JSON, the inputs take {used} of them (binary_data_size)")
    outputs = None if not given.outputs else [_wanted(each, binary) for each in given.outputs]
    return Request(inputs, outputs, binary, given.id)


def write(reply: Reply) -> tuple[bytes, str]:
    """Return ``reply`` as bytes and their media type: JSON, or binary when any tensor goes as bytes.

    Raises NotAcceptable for BYTES that JSON cannot carry, and BadAnswer from ``dtypes``.
    """
    outputs: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for tensor, binary in reply.outputs:
        fields: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if binary:
            blobs.append(v2_binary.write(tensor.data))
            fields["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            fields["data"] = _to_json(tensor)
        outputs.append(fields)
    head: dict[str, Any] = {"model_name": reply.model, "model_version": reply.version}
    if reply.id:
        head["id"] = reply.id
    encoded = msgspec.json.encode({**head, "outputs": outputs})  # NaN and infinities become null, as everywhere here
    if not blobs:
        return encoded, JSON
    return b"".join([encoded, *blobs]), v2_header.content_type(len(encoded))


def write_request(inputs: list[Tensor]) -> tuple[bytes, str]:
    """Return a request with ``inputs`` as JSON, and its media type. Raises NotAcceptable for BYTES that are no text."""
    given = [
        {"name": each.name, "shape": each.shape, "datatype": each.datatype, "data": _to_json(each)} for each in inputs
    ]
    return msgspec.json.encode({"inputs": given}), JSON


def _decode(head: bytes) -> _Request:
    try:
        return _REQUEST.decode(head)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the v2 request is not as it should be: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the v2 request is not JSON: {error}") from error
    except RecursionError:
        raise BadRequest("the v2 request's JSON is nested too deeply") from None


def _flag(parameters: dict[str, Any], name: str, where: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"{name} of {where} is {str(value)[:40]!r}; it must be true or false")
    return value


def _wanted(output: _Output, binary: bool) -> Wanted:
    for name in output.parameters:
        if name == "classification" or name.startswith("shared_memory"):
            raise BadInput(f"output {output.name!r} asks for {name}, which is not done here")
    return Wanted(output.name, _flag(output.parameters, "binary_data", f"output {output.name!r}", default=binary))


def _binary_size(tensor: _Input, left: int) -> int | None:
    """The bytes of ``tensor`` behind the JSON, None if it is in the JSON."""
    size = tensor.parameters.get("binary_data_size")
    if any(name.startswith("shared_memory") for name in tensor.parameters):
        raise BadInput(f"input {tensor.name!r} lies in shared memory, which is not read here")
    if size is None:
        return None
    if tensor.data:
        raise BadRequest(f"input {tensor.name!r} has both data and binary_data_size; one of them is wanted")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= left:
        raise BadRequest(
            f"binary_data_size of input {tensor.name!r} is {str(size)[:40]}; {left} bytes are left behind the JSON"
        )
    return size


# --- data in JSON ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _decoder(kind: str, depth: int) -> msgspec.json.Decoder[Any]:
    shape: Any = _ITEMS[kind]
    for _ in range(depth):
        shape = list[shape]
    return msgspec.json.Decoder(shape)


def _depth(raw: bytes) -> int:
    """How deep lists open at the start of ``raw``: the depth of all of it, as the decoder then checks."""
    depth = 0
    for byte in raw:
        if byte == 0x5B:
            depth += 1
        elif byte not in _SPACE:
            break
        if depth > _MAX_DEPTH:
            break
    return depth


def _from_json(tensor: _Input) -> Array:
    """Return the data of ``tensor`` as an array of its shape. Raises BadRequest, BadInput."""
    dtype = dtypes.to_numpy(tensor.datatype)
    raw, name = bytes(tensor.data), tensor.name
    count = v2_binary.count_of(name, tensor.shape)
    depth = _depth(raw)
    if not 0 < depth <= _MAX_DEPTH:
        what = "no data" if not raw else "data that is no list" if not depth else "data nested too deeply"
        raise BadRequest(f"input {name!r} has {what}; expected a list of its {count} values")
    try:
        values = _decoder("f" if tensor.datatype == "BF16" else dtype.kind, depth).decode(raw)
    except msgspec.ValidationError as error:
        raise BadInput(f"the data of input {name!r} is not {tensor.datatype}: {error}") from error
    except msgspec.DecodeError as error:
        raise BadRequest(f"the data of input {name!r} is not JSON: {error}") from error
    for _ in range(depth - 1):
        values = list(itertools.chain.from_iterable(values))
    if len(values) != count:
        raise BadRequest(f"input {name!r} has shape {tensor.shape}, which is {count} values, and {len(values)} in data")
    return v2_binary.shaped(name, _array(values, tensor), tensor.shape)


def _array(values: list[Any], tensor: _Input) -> Array:
    """``values``, of the right types, as a flat array."""
    if tensor.datatype == "BYTES":
        found = np.empty(len(values), object)
        found[:] = [_utf8(each, tensor.name) for each in values]
        return found
    try:
        with np.errstate(over="raise"):
            if tensor.datatype == "BF16":
                return _to_bf16(np.array(values, np.float32))
            return np.array(values, dtypes.to_numpy(tensor.datatype))
    except (OverflowError, FloatingPointError) as error:
        raise BadInput(f"a value of input {tensor.name!r} is out of the range of {tensor.datatype}") from error


def _utf8(text: str, name: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"a text of input {name!r} holds a lone surrogate") from error


def _to_bf16(values: Array) -> Array:
    """float32 as the upper half of its bits, rounded to even; no NaN is in JSON."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _to_json(tensor: Tensor) -> list[Any]:
    """The elements of ``tensor``, flat, as JSON has them."""
    flat = tensor.data.ravel()
    if tensor.datatype == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    if tensor.datatype != "BYTES":
        values: list[Any] = flat.tolist()
        return values
    try:
        return [each if isinstance(each, str) else bytes(each).decode() for each in flat]
    except UnicodeDecodeError as error:
        raise NotAcceptable(
            f"output {tensor.name!r} holds bytes that are not UTF-8 text; ask for it with binary_data: true"
        ) from error
