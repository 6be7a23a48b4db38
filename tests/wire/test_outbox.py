"""What leaves when: the writing half of a connection before a transport that keeps what it is given."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from container.wire.outbox import Outbox


class Records(asyncio.Transport):
    """Remembers each write, and that it was aborted."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.aborted = False

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.writes.append(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def test_what_one_turn_says_leaves_in_one_write_in_order() -> None:
    async def scenario() -> None:
        outbox, transport = Outbox(), Records()
        outbox.connection_made(transport)
        for turn in (b"abc", b"d"):
            for letter in turn:
                outbox.put(bytearray([letter]))
            await asyncio.sleep(0)
        assert transport.writes == [b"abc", b"d"]

    asyncio.run(scenario())


def test_hanging_up_sends_what_waits_first_and_nothing_afterwards() -> None:
    async def scenario() -> None:
        outbox, transport = Outbox(), Records()
        outbox.connection_made(transport)
        outbox.put(bytearray(b"last words"))
        outbox.abort()
        outbox.put(bytearray(b"too late"))
        await asyncio.sleep(0)
        outbox.connection_lost(None)
        outbox.put(bytearray(b"nobody is there"))
        await asyncio.sleep(0)
        assert (transport.writes, transport.aborted) == ([b"last words"], True)

    asyncio.run(scenario())
