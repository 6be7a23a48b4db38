"""KServe v2 for models that know nothing of it: tensors become the body such a model reads, its answer a tensor.

    BYTES [n], texts or images   -> {"inputs": [...]}          further tensors -> "parameters", by their names
    numbers, the only tensor     -> .npy
    an array                     -> one output, FP32 [n, ...] for n vectors
    anything else                -> one output, BYTES: the JSON of each of n answers, a text as it is

Only for handlers that do not speak v2 themselves; scripts of authors get what came. Pure.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import numpy as np

from container.errors import BadInput
from container.handler import Handler
from container.payload import JSON, Payload
from container.protocol import dtypes, media, npy, v2, v2_header
from container.protocol.v2 import Tensor

_NPY = "application/x-npy"
#: What a model is asked to answer in: an array if there is one, else JSON.
_WANTED = f"{_NPY}, {JSON};q=0.5"
#: The tensor with the texts, if there are others beside it; else the first.
_MAIN = "inputs"
_OUTPUT = "output"


def applies(handler: Handler, payload: Payload) -> bool:
    """Say whether ``payload`` is v2 and ``handler`` needs to be asked in another way."""
    if "vnd." not in payload.content_type.lower() or handler.speaks_v2:  # the first is true of nearly all, and quick
        return False
    return media.parse(payload.content_type).type in (v2_header.JSON_TYPE, v2_header.BINARY_TYPE)


def decode(handler: Handler, payload: Payload) -> Any:
    """Return what ``handler`` makes of the tensors in ``payload``. Raises BadRequest, BadInput, MediaType."""
    request = v2.read(payload.body, payload.content_type)
    if request.raw is not None:
        body, content_type = request.raw, "application/octet-stream"
    else:
        body, content_type = _plain(request.inputs)
    return handler.decode(msgspec.structs.replace(payload, body=body, content_type=content_type))


def encode(handler: Handler, output: Any, payload: Payload) -> Payload:
    """Return ``output`` of ``handler`` as the v2 answer to ``payload``. Raises BadInput, NotAcceptable, BadAnswer."""
    request = v2.read(payload.body, payload.content_type)
    answer = handler.encode(output, _WANTED)
    if media.parse(answer.content_type).type == _NPY:
        tensor = _tensor(npy.read(answer.body))
    else:
        tensor = _texts(answer.body, len(request.inputs[0].data) if request.inputs and request.inputs[0].shape else 1)
    wanted = request.outputs or [v2.Wanted(_OUTPUT, request.binary)]
    unknown = [each.name for each in wanted if each.name != _OUTPUT]
    if unknown:
        raise BadInput(f"unknown output {unknown[0]!r}; this model has {_OUTPUT}")
    reply = v2.Reply(handler.registered_name, "1", [(tensor, each.binary) for each in wanted], request.id)
    body, content_type = v2.write(reply)
    return msgspec.structs.replace(answer, body=body, content_type=content_type)


def _plain(inputs: list[Tensor]) -> tuple[bytes, str]:
    """The body that says what ``inputs`` do, and its media type."""
    if not inputs:
        raise BadInput("the request has no inputs; expected one of BYTES with the texts, or one of numbers")
    main = next((each for each in inputs if each.name == _MAIN), inputs[0])
    others = [each for each in inputs if each is not main]
    if main.datatype != "BYTES":
        if others:
            raise BadInput(f"input {main.name!r} is {main.datatype}; beside numbers no other input is read")
        return npy.write(_numbers(main)), _NPY
    parameters = {each.name: _value(each) for each in others}
    fields: dict[str, Any] = {"inputs": [_text(each) for each in main.data.ravel()]}
    if parameters:
        fields["parameters"] = parameters
    return msgspec.json.encode(fields), JSON


def _numbers(tensor: Tensor) -> np.ndarray[Any, Any]:
    if tensor.datatype != "BF16":
        return tensor.data
    widened: np.ndarray[Any, Any] = (tensor.data.astype(np.uint32) << 16).view(np.float32)
    return widened


def _value(tensor: Tensor) -> Any:
    """A parameter: the one value of ``tensor``, or the list of them."""
    flat = (
        [_text(each) for each in tensor.data.ravel()]
        if tensor.datatype == "BYTES"
        else _numbers(tensor).ravel().tolist()
    )
    return flat[0] if len(flat) == 1 else flat


def _text(raw: bytes) -> str:
    """``raw`` as text; what is none, an image for instance, in base64, as it stands in JSON otherwise."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return base64.b64encode(raw).decode()


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    name = dtypes.to_name(array.dtype)
    if name != "BYTES":
        return Tensor(_OUTPUT, name, array.shape, array)
    found = np.empty(array.size, object)
    found[:] = [str(each).encode() for each in array.ravel()]
    return Tensor(_OUTPUT, name, array.shape, found.reshape(array.shape))


def _texts(body: bytes, rows: int) -> Tensor:
    """The JSON in ``body`` as BYTES: one element a row if there is an answer a row, else one."""
    value = msgspec.json.decode(body)
    parts = value if isinstance(value, list) and len(value) == rows else [value]
    found = np.empty(len(parts), object)
    found[:] = [each.encode() if isinstance(each, str) else msgspec.json.encode(each) for each in parts]
    return Tensor(_OUTPUT, "BYTES", found.shape, found)
