"""The request that the text and image tasks share: ``{"inputs": ..., "parameters": {...}}``, as Hugging Face has it.

Also taken: a bare string or list, plain text, CSV with one text a line, and parameters beside ``inputs`` as
text-embeddings-inference has them. Every refusal names the field, what came, and what is expected.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from container.errors import BadInput, MediaType
from container.payload import Payload
from container.protocol import codecs, media

P = TypeVar("P", bound=msgspec.Struct)

#: Members that others read: the several-task router, and clients of Hugging Face's inference API.
_IGNORED = frozenset({"options", "process", "task"})


#: Texts in one request. A body of 25 MB could hold millions, each of which costs far more than its few bytes.
MAX_TEXTS = 16_384


class Body(NamedTuple):
    """What a request asks: ``inputs`` as they came, and the parameters by name, not yet checked."""

    inputs: Any
    parameters: dict[str, Any]


def shown(value: Any) -> str:
    """Return ``value`` as a message may show it: its kind and its first characters."""
    kinds = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a text"}
    kinds |= {list: f"a list of {len(value)}" if isinstance(value, list) else "", dict: "an object"}
    kind = kinds.get(type(value), f"a {type(value).__name__}")
    if value is None or not isinstance(value, (bool, int, float, str)):
        return kind
    text = repr(value)
    return f"{kind}, {text if len(text) <= 60 else text[:57] + '...'}"


def read(payload: Payload) -> Body:
    """Return the Body of ``payload``. Raises MediaType, BadRequest or BadInput."""
    kind, parameters = media.parse(payload.content_type)
    if kind == "text/csv":
        charset = parameters.get("charset", "utf-8")
        text = codecs.decode(payload.body, f"text/plain; charset={charset}")
        return Body([_cell(line) for line in text.splitlines() if line.strip()], {})
    value = codecs.decode(payload.body, payload.content_type)
    if kind == "text/plain":
        return Body(value.removesuffix("\n"), {})
    if isinstance(value, (bytes, bytearray)):
        raise MediaType(f"this model reads JSON, text/plain and text/csv, not {kind}")
    if not isinstance(value, dict):
        return Body(value, {})
    if "inputs" not in value:
        near = difflib.get_close_matches("inputs", value, n=1, cutoff=0.5)
        came = f"the body has {', '.join(map(repr, value)) or 'no members'}"
        hint = f"; is {near[0]!r} meant to be inputs?" if near else ""
        raise BadInput(f'inputs is missing: {came}; expected {{"inputs": ..., "parameters": {{...}}}}{hint}')
    nested = value.get("parameters")
    if nested is not None and not isinstance(nested, dict):
        raise BadInput(f"parameters is {shown(nested)}; expected an object")
    beside = {name: value[name] for name in value if name not in ("inputs", "parameters") and name not in _IGNORED}
    return Body(value["inputs"], beside | (nested or {}))


def _cell(line: str) -> str:
    """A line of CSV is one text, commas and all; quotes around the whole are CSV's and not the text's."""
    stripped = line.strip()
    quoted = re.fullmatch(r'"((?:[^"]|"")*)"', stripped)
    return quoted[1].replace('""', '"') if quoted else stripped


def bounded(inputs: Sequence[Any], most: int) -> None:
    """Raise BadInput when ``inputs`` holds nothing, or more than ``most``."""
    if not inputs:
        raise BadInput("inputs is an empty list; expected at least one member")
    if len(inputs) > most:
        raise BadInput(f"inputs has {len(inputs)} members; at most {most} are answered in one request")


def texts(inputs: Any, most: int = MAX_TEXTS) -> tuple[list[str], bool]:
    """Return the texts of ``inputs`` and whether it was one by itself.

    Raises BadInput for anything else, for nothing, and for more than ``most``.
    """
    if isinstance(inputs, str):
        return [inputs], True
    if not isinstance(inputs, list):
        raise BadInput(f"inputs is {shown(inputs)}; expected a text or a list of texts")
    bounded(inputs, most)
    for index, text in enumerate(inputs):
        if not isinstance(text, str):
            raise BadInput(f"inputs[{index}] is {shown(text)}; expected a text")
    return inputs, False


def parameters(given: dict[str, Any], kind: type[P], absent: Sequence[str] = ()) -> P:
    """Return ``given`` as ``kind``. Raises BadInput for an unknown name (with the nearest) or a value that will not do.

    absent: names that others know and this task does not do; refused with that said.
    """
    known = kind.__struct_fields__
    for name in given:
        if name in known:
            continue
        if name in absent:
            raise BadInput(f"parameter {name} ({shown(given[name])}) is not done here; known: {', '.join(known)}")
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
        raise BadInput(f"unknown parameter {name!r}{hint}")
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        expected, _, path = str(error).partition(" - at `$.")
        name = re.split(r"[^\w]", path)[0]
        raise BadInput(f"parameter {name} is {shown(given.get(name))}: {expected}") from error
