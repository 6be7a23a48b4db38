"""How a message lies on a stream: four bytes of length (little-endian), then msgpack.

Pure: bytes in, messages out. Does not cover: sockets, retries, who may send what.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from container.wire import messages as m

#: Frames over this go on the bulk connection, so that small ones never wait behind them.
BULK_BYTES = 256 << 10
#: No frame of ours is larger: a payload limit of 1 GiB is the most that settings allow.
MAX_FRAME_BYTES = (1 << 30) + (1 << 24)

_HEADER_BYTES = 4
_encoder = msgspec.msgpack.Encoder()

T = TypeVar("T")

REQUESTS: msgspec.msgpack.Decoder[m.Request] = msgspec.msgpack.Decoder(m.Request)
REPLIES: msgspec.msgpack.Decoder[m.Reply] = msgspec.msgpack.Decoder(m.Reply)
CONTROL: msgspec.msgpack.Decoder[m.Control] = msgspec.msgpack.Decoder(m.Control)


class FrameError(Exception):
    """The stream is not one of ours, or is damaged; the connection must be closed."""


def encode(message: m.Request | m.Reply | m.Control) -> bytearray:
    """Return the frame of ``message``."""
    frame = bytearray(_HEADER_BYTES)
    _encoder.encode_into(message, frame, _HEADER_BYTES)
    frame[:_HEADER_BYTES] = (len(frame) - _HEADER_BYTES).to_bytes(_HEADER_BYTES, "little")
    return frame


class FrameReader(Generic[T]):
    """Cuts a stream into messages; feed it whatever arrives, in pieces of any size."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T], max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._decoder = decoder
        self._max_bytes = max_bytes
        self._rest = bytearray()

    def feed(self, data: bytes | bytearray) -> list[T]:
        """Return the messages that ``data`` completes. Raises FrameError."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted():
                return []
            data, self._rest = self._rest, bytearray()
        messages: list[T] = []
        view = memoryview(data)
        start, end = 0, len(data)
        while end - start >= _HEADER_BYTES:
            stop = start + _HEADER_BYTES + self._length(view[start : start + _HEADER_BYTES])
            if stop > end:
                break
            messages.append(self._decode(view[start + _HEADER_BYTES : stop]))
            start = stop
        if start < end:
            self._rest += view[start:]
        return messages

    def _wanted(self) -> int:
        """Bytes needed before the first waiting frame is whole; keeps large frames from being looked at again."""
        if len(self._rest) < _HEADER_BYTES:
            return _HEADER_BYTES
        return _HEADER_BYTES + self._length(memoryview(self._rest)[:_HEADER_BYTES])

    def _length(self, header: memoryview) -> int:
        length = int.from_bytes(header, "little")
        if length > self._max_bytes:
            raise FrameError(f"a frame of {length} bytes is over the limit of {self._max_bytes}")
        return length

    def _decode(self, body: memoryview) -> T:
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(f"a frame of {len(body)} bytes is not a message: {error}") from error
