"""Frames of ``application/vnd.amazon.eventstream``, as InvokeEndpointWithResponseStream answers. Pure.

    total length (4) | length of headers (4) | CRC32 of these 8 | headers | payload | CRC32 of all before (4)

A header is: length of its name (1), name, type 7 = string (1), length of the value (2), value; all big-endian.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping

CONTENT_TYPE = "application/vnd.amazon.eventstream"
_STRING = 7


def frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """Return one frame. Raises struct.error for a header name over 255 bytes."""
    packed = b"".join(_header(name.encode(), value.encode()) for name, value in headers.items())
    prelude = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + packed + payload
    return message + struct.pack("!I", zlib.crc32(message))


def payload_part(data: bytes) -> bytes:
    """Return the frame that carries a piece of the model's answer as it came."""
    kind = {":message-type": "event", ":event-type": "PayloadPart", ":content-type": "application/octet-stream"}
    return frame(kind, data)


def stream_error(code: str, message: str) -> bytes:
    """Return the frame that ends a stream in a ModelStreamError.

    code: "ModelInvocationTimeExceeded" or "StreamBroken".
    """
    kind = {
        ":message-type": "exception",
        ":exception-type": "ModelStreamError",
        ":content-type": "application/json",
    }
    return frame(kind, json.dumps({"Message": message, "ErrorCode": code}).encode())


def _header(name: bytes, value: bytes) -> bytes:
    return struct.pack("!B", len(name)) + name + struct.pack("!BH", _STRING, len(value)) + value
