"""An answer that comes in pieces, as the side that asked sees it.

What the reader has not taken yet waits here, joined into one piece: a slow reader slows nobody who shares its batch. A
reader that falls too far behind is let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from container.errors import Failure, QueueFull, ServingError
from container.payload import Payload
from container.wire import messages as m

#: Bytes that wait for one reader at most.
MAX_WAITING_BYTES = 8 << 20


class Stream:
    """Read it to its end, and ``close`` it in any case. head: the first piece; its headers are the answer's.

    abandon: tells the other side that the rest is not wanted. Lives on one event loop.
    """

    def __init__(self, head: Payload, abandon: Callable[[], None]) -> None:
        self.head = head
        self._abandon = abandon
        self._waiting = [head.body]
        self._waiting_bytes = len(head.body)
        self._ended = False
        self._failure: Failure | None = None
        self._arrived = asyncio.Event()
        self._arrived.set()

    def feed(self, reply: m.Reply) -> None:
        """Take a Chunk, or what ends the stream: an Answer, or Failed."""
        if self._ended:
            return
        part = reply.part if isinstance(reply, m.Chunk) else getattr(reply, "result", None)
        if isinstance(part, Payload):
            self._waiting.append(part.body)
            self._waiting_bytes += len(part.body)
        elif isinstance(reply, m.Failed):
            self._failure = reply.failure
        else:
            self._failure = part
        self._ended = not isinstance(reply, m.Chunk)
        if self._waiting_bytes > MAX_WAITING_BYTES and not self._ended:
            self.close()
            self._failure = QueueFull(f"{self._waiting_bytes} bytes of the answer were not read in time").to_failure()
        self._arrived.set()

    async def read(self) -> bytes | None:
        """Return what has come since the last call, waiting for it; None at the end.

        Raises the ServingError that ended the stream, after what came before it.
        """
        while not self._waiting:
            if self._ended:
                if self._failure is not None:
                    raise ServingError.from_failure(self._failure)
                return None
            self._arrived.clear()
            await self._arrived.wait()
        joined = b"".join(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        return joined

    def close(self) -> None:
        """Let go of the stream; if it has not ended, the other side is told."""
        if not self._ended:
            self._ended = True
            self._abandon()
