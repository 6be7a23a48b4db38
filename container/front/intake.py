"""Taking a request's body in: the limit on one body, and the budget of all bodies in this process.

Both are checked against Content-Length before a byte is read; what comes chunked is counted while it comes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from container.errors import BadRequest, QueueFull, TooLarge

Receive = Callable[[], Awaitable[dict[str, Any]]]

_LEAST_BUDGET_BYTES = 64 << 20

#: Chunks that are put together at the latest: as an object of its own each byte would take forty.
MANY_CHUNKS = 4096


class Budget:
    """Bytes of bodies that this process may hold at a time, from before they are read until they are answered."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    @staticmethod
    def for_payloads(max_payload_bytes: int) -> Budget:
        """Return the budget of a front: four of the largest bodies, and no less than 64 MiB."""
        return Budget(max(_LEAST_BUDGET_BYTES, 4 * max_payload_bytes))

    def take(self, count: int) -> None:
        """Take ``count`` bytes. Raises QueueFull, and then has taken none."""
        if self.used_bytes + count > self.limit_bytes:
            raise QueueFull(
                f"the request bodies in flight fill their budget of {self.limit_bytes} bytes; try again in a moment",
                retry_after_s=1,
            )
        self.used_bytes += count

    def give_back(self, count: int) -> None:
        """Return ``count`` bytes taken before."""
        self.used_bytes -= count
        assert self.used_bytes >= 0, "more bytes given back than taken"


class Body:
    """One body on its way in; whoever makes one calls ``done`` in the end.

    declared: Content-Length, 0 when there is no body, None when it comes chunked. Raises TooLarge and QueueFull
    when made, before anything is read.
    """

    __slots__ = ("_budget", "_declared", "_held", "_limit")

    def __init__(self, declared: int | None, limit_bytes: int, budget: Budget) -> None:
        if declared is not None and declared > limit_bytes:
            raise _too_large(f"{declared} bytes", limit_bytes)
        self._budget = budget
        self._declared = declared
        self._limit = limit_bytes
        self._held = declared or 0
        budget.take(self._held)

    async def read(self, receive: Receive) -> bytes:
        """Return the body. Raises TooLarge, QueueFull, and BadRequest when the sender stops half-way."""
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            body: bytes = message.get("body", b"")
            if self._declared is None:
                self._grow(len(body), 0)
            return body
        return await self._read_on(message, receive)

    async def _read_on(self, message: dict[str, Any], receive: Receive) -> bytes:
        chunks: list[bytes] = []
        blocks: list[bytes] = []
        size = 0
        while message["type"] == "http.request":
            chunk = message.get("body", b"")
            if self._declared is None:
                self._grow(len(chunk), size)
            size += len(chunk)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join([*blocks, *chunks])
            if len(chunks) == MANY_CHUNKS:
                blocks.append(b"".join(chunks))
                chunks.clear()
            message = await receive()
        raise BadRequest(f"the body stopped coming after {size} bytes", status=408)

    def _grow(self, count: int, size: int) -> None:
        if size + count > self._limit:
            raise _too_large("chunked and longer", self._limit)
        self._budget.take(count)
        self._held += count

    def done(self) -> None:
        """Give the bytes back to the budget; a second call does nothing."""
        held, self._held = self._held, 0
        self._budget.give_back(held)


def declared_length(fields: dict[bytes, bytes]) -> int | None:
    """Return Content-Length, 0 without a body, None for a chunked one; gunicorn has checked that it is digits."""
    length = fields.get(b"content-length")
    if length is not None:
        return int(length)
    return None if b"transfer-encoding" in fields else 0


def _too_large(what: str, limit_bytes: int) -> TooLarge:
    return TooLarge(
        f"the body is {what}; at most {limit_bytes} bytes are taken (SAGEMAKER_MAX_PAYLOAD_IN_MB raises the limit)"
    )
