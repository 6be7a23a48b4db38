"""Bytes to values and back, by media type: one table, a pair of functions a row.

    value, content_type = decode(body, "text/csv"), ...
    body, content_type = encode(value, accept)

Choices where formats leave one: JSON has no NaN or infinity, so they are written as ``null`` (as browsers do; Python's
``NaN`` would not be JSON) and refused when read. CSV is numbers when every cell of the body is one, else text.
Arrays never hold pickled objects. Bytes inside a JSON answer are base64; bytes alone answer as octet-stream.

Does not cover: pixels (``image/*`` stays bytes, the model opens them) and KServe v2 (``protocol/v2``).
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from container.errors import BadAnswer, BadRequest, MediaType, NotAcceptable
from container.payload import JSON
from container.protocol import media, npy, v2_header

Parameters = Mapping[str, str]

_BOM = b"\xef\xbb\xbf"
#: Charsets a text body may come in: what bodies are written in, not every codec of Python (punycode, unicode_escape).
_CHARSET = re.compile(
    r"utf-(7|8|16|32)(-[lb]e|-sig)?|ascii|iso8859-\d+|cp\d+|koi8-\w|gb\w+|big5\w*|euc_\w+|shift_jis\w*"
)


class _Unfit(Exception):
    """A value without a form in a media type; another may be tried."""


# --- text ------------------------------------------------------------------------------------------------------------


def _text(body: bytes, parameters: Parameters) -> str:
    """Return ``body`` in the charset of ``parameters``, UTF-8 if none, without a byte order mark."""
    charset = parameters.get("charset", "utf-8")
    try:
        name = codecs.lookup(charset).name
    except (LookupError, ValueError) as error:
        raise MediaType(f"unknown charset {charset!r}; utf-8 is understood everywhere") from error
    if not _CHARSET.fullmatch(name):
        raise MediaType(f"charset {charset!r} is not for text; use utf-8")
    try:
        return body.decode(name).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not {charset}: {error.reason} at byte {error.start}") from error


def _as_text(value: Any) -> bytes:
    """A string as it is, anything else as JSON."""
    return _utf8(value) if isinstance(value, str) else _to_json(value)


def _utf8(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise _Unfit(f"its text holds a lone surrogate at character {error.start}") from error


# --- JSON ------------------------------------------------------------------------------------------------------------


def _from_json(body: bytes, parameters: Parameters) -> Any:
    if parameters.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        body = _text(body, parameters).encode()
    body = body.removeprefix(_BOM)
    if not body.strip():
        raise BadRequest("the body is empty; JSON was expected")
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # msgspec 0.23 has the first for a string not in UTF-8
        _text(body, {})  # raises where that is so, with the position in the whole body
        raise BadRequest(f"the body is not JSON: {_where(str(error), body)}") from error
    except RecursionError:
        raise BadRequest("the body's JSON is nested too deeply") from None


def _where(reason: str, body: bytes) -> str:
    """Return msgspec's reason with the text around the byte it names."""
    reason = reason.removeprefix("JSON is malformed: ")
    match = re.search(r"\(byte (\d+)\)", reason)
    if match is None:
        return f"{reason} (the body ends at byte {len(body)})" if "truncated" in reason else reason
    at = int(match[1])
    return f"{reason}, near {body[max(0, at - 20) : at + 20].decode(errors='replace')!r}"


def _plain(value: Any) -> Any:
    """What msgspec does not know, as what it does: arrays, tensors, numpy scalars, mappings, iterables."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "__array__"):
        return np.asarray(value).tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise _Unfit(f"it holds a {type(value).__name__}")


def _to_json(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise _Unfit("it is bytes")
    try:
        return msgspec.json.encode(value, enc_hook=_plain)
    except UnicodeEncodeError as error:
        raise _Unfit(f"its text holds a lone surrogate at character {error.start}") from error
    except RecursionError:
        raise _Unfit("it is nested too deeply") from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise _Unfit(str(error)) from error


# --- CSV -------------------------------------------------------------------------------------------------------------


def _from_csv(body: bytes, parameters: Parameters) -> list[list[Any]]:
    """Return rows of cells: int if all are whole, else float if all are numbers, else str. Blank lines do not count."""
    text = _text(body, parameters)
    if not text.strip():
        raise BadRequest("the body is empty; CSV was expected")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows: list[list[Any]] = [row for row in reader if row]
    except csv.Error as error:
        raise BadRequest(f"the body is not CSV: {error} in line {reader.line_num}") from error
    if not text.isascii() or "_" in text:  # Python would read 1_000 and other scripts' digits as numbers
        return rows
    for number in (int, float):
        try:
            return [[number(cell) for cell in row] for row in rows]
        except ValueError:
            continue
    return rows


def _to_csv(value: Any) -> bytes:
    """Rows as lines; one number or text a line for a flat list; objects of the same keys below a line of these."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise _Unfit("it is bytes")
    try:
        plain = msgspec.to_builtins(value, enc_hook=_plain)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _Unfit(str(error)) from error
    rows = _table(plain if isinstance(plain, list) else [plain])
    if not all(cell is None or isinstance(cell, (str, int, float)) for row in rows for cell in row):
        raise _Unfit("it has more than two dimensions")
    # The writer does not see that a lone \r ends a line for readers.
    ends = any(isinstance(cell, str) and "\r" in cell for row in rows for cell in row)
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL if ends else csv.QUOTE_MINIMAL).writerows(rows)
    return _utf8(out.getvalue())


def _table(rows: list[Any]) -> list[list[Any]]:
    """Each row as a list of cells; objects below a row of their names."""
    if rows and isinstance(rows[0], dict):
        names = list(rows[0])
        if any(not isinstance(row, dict) or list(row) != names for row in rows):
            raise _Unfit("its rows do not have the same names")
        rows = [names, *(list(row.values()) for row in rows)]
    return [row if isinstance(row, list) else [row] for row in rows]


# --- arrays and bytes ------------------------------------------------------------------------------------------------


def _array(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)):
        raise _Unfit(f"it is a {type(value).__name__}, not an array")
    if hasattr(value, "detach"):  # a tensor with a gradient or on a device; known by its methods, torch is not needed
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except (TypeError, RuntimeError):  # a tensor of a dtype that numpy does not have, bfloat16
        array = np.asarray(_plain(value))
    except ValueError as error:
        raise _Unfit("its rows differ in length") from error
    if array.dtype.hasobject:
        raise _Unfit("it is not an array of numbers or text")
    return array


def _to_npy(value: Any) -> bytes:
    return npy.write(_array(value))


def _to_npz(value: Any) -> bytes:
    """A dict of arrays under its keys, one array as ``arr_0`` as numpy.savez does."""
    arrays = value if isinstance(value, Mapping) else {"arr_0": value}
    if not all(isinstance(name, str) for name in arrays):
        raise _Unfit("its keys are not text")
    return npy.write_many({name: _array(array) for name, array in arrays.items()})


def _as_bytes(body: bytes, parameters: Parameters) -> bytes:
    return body


def _to_bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return _utf8(value)
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise _Unfit(f"it is a {type(value).__name__}, not bytes")
    return bytes(value)


# --- the table -------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A media type (``image/*`` covers all of them) with its reader, and its writer if answers can have it."""

    media: str
    decode: Callable[[bytes, Parameters], Any]
    encode: Callable[[Any], bytes] | None


#: In the order in which answers are tried when the caller does not mind.
TABLE = (
    Row(JSON, _from_json, _to_json),
    Row("text/csv", _from_csv, _to_csv),
    Row("text/plain", _text, _as_text),
    Row("application/x-npy", lambda body, _: npy.read(body), _to_npy),
    Row("application/x-npz", lambda body, _: npy.read_many(body), _to_npz),
    Row("application/octet-stream", _as_bytes, _to_bytes),
    Row("application/x-image", _as_bytes, None),
    Row("image/*", _as_bytes, None),
)
_ROWS = {row.media: row for row in TABLE}
_WRITERS = {row.media: row.encode for row in TABLE if row.encode is not None}
OFFERED = tuple(_WRITERS)


def decode(body: bytes, content_type: str) -> Any:
    """Return the value in ``body``; a missing content type is JSON.

    Raises MediaType naming the known types, BadRequest saying where the body stops being what it claims to be.
    """
    kind, parameters = media.parse(content_type)
    row = _ROWS.get(kind) or _ROWS.get(f"{kind.partition('/')[0]}/*")
    if row is None and kind.endswith("+json") and not v2_header.is_binary(kind):  # RFC 6839: JSON, whatever it means
        row = _ROWS[JSON]
    if row is not None:
        return row.decode(body, parameters)
    if kind == "application/x-www-form-urlencoded":
        raise MediaType(f"{kind} is what curl sends when nothing else is said; add -H 'Content-Type: application/json'")
    raise MediaType(f"content type {kind!r} is not read here; known: {', '.join(_ROWS)}")


def encode(value: Any, accept: str, default: str = JSON) -> tuple[bytes, str]:
    """Return ``value`` as bytes and their media type, the best of ``accept`` that the value has a form in.

    default: the type to prefer where ``accept`` leaves the choice ("" or ``*/*``).
    Raises NotAcceptable naming the possible types, and BadAnswer if the value has no form in any.
    """
    reasons: dict[str, str] = {}
    for kind in media.rank(accept, OFFERED, default):
        try:
            body = _WRITERS[kind](value)
        except _Unfit as unfit:
            reasons[kind] = str(unfit)
            continue
        # Without a charset, clients read text as Latin-1 (RFC 2616's default, which python-requests keeps).
        return body, f"{kind}; charset=utf-8" if kind.startswith("text/") and not body.isascii() else kind
    fits = [kind for kind in OFFERED if kind not in reasons and _fits(value, kind)]
    why = "; ".join(f"not as {kind}: {reason}" for kind, reason in reasons.items())
    if not fits:
        raise BadAnswer(f"the model answered with a {type(value).__name__}, which cannot be written: {why}")
    raise NotAcceptable(
        f"no answer in {accept!r} is possible; offered: {', '.join(fits)}" + (f" ({why})" if why else "")
    )


def _fits(value: Any, kind: str) -> bool:
    try:
        _WRITERS[kind](value)
    except _Unfit:
        return False
    return True
