"""The writing half of a connection: what one turn of the event loop has to say leaves in one write.

A write is a system call and wakes the other process up; under load that costs more than all the Python that a request
runs through in a process. uvloop writes at once, so the frames are kept here until the turn is over.
"""

from __future__ import annotations

import asyncio


class Outbox(asyncio.Protocol):
    """Base of both ends' connections. transport: None before the connection stands and once it is lost."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._frames: list[bytearray] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the transport; what waits is lost."""
        self.transport = None

    def put(self, frame: bytearray) -> None:
        """Send ``frame`` after those before it, when this turn of the loop is over; lost if the peer is gone."""
        if not self._frames:
            asyncio.get_running_loop().call_soon(self.flush)
        self._frames.append(frame)

    def flush(self) -> None:
        """Send what waits now."""
        frames, self._frames = self._frames, []
        if frames and self.transport is not None and not self.transport.is_closing():
            self.transport.writelines(frames)

    def abort(self) -> None:
        """Send what waits and hang up, without waiting for the peer to read."""
        self.flush()
        if self.transport is not None:
            self.transport.abort()
