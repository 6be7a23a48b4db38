"""Bodies coming in: the limit, and the budget that is always given back."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.errors import BadRequest, QueueFull, ServingError, TooLarge
from container.front.intake import Body, Budget, declared_length


def receiving(chunks: list[bytes], *, whole: bool = True) -> Any:
    messages = [
        {"type": "http.request", "body": chunk, "more_body": not whole or n < len(chunks)}
        for n, chunk in enumerate(chunks, start=1)
    ]
    messages.append({"type": "http.disconnect"})

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    return receive


def test_a_declared_body_over_the_limit_is_refused_without_taking_anything() -> None:
    budget = Budget(100)
    with pytest.raises(TooLarge, match="11 bytes; at most 10"):
        Body(11, 10, budget)
    assert budget.used_bytes == 0


def test_the_budget_is_taken_before_the_body_is_read() -> None:
    budget = Budget(100)
    body = Body(80, 90, budget)
    assert budget.used_bytes == 80
    with pytest.raises(QueueFull):
        Body(21, 90, budget)
    body.done()
    body.done()
    assert budget.used_bytes == 0


def test_a_body_that_stops_half_way_is_a_bad_request() -> None:
    body = Body(10, 10, Budget(100))
    with pytest.raises(BadRequest, match="after 4 bytes") as caught:
        asyncio.run(body.read(receiving([b"12", b"34"], whole=False)))
    assert caught.value.status == 408


CHUNKS = st.lists(st.binary(max_size=40), min_size=1, max_size=5)


@given(st.lists(st.tuples(CHUNKS, st.booleans(), st.booleans()), max_size=12), st.integers(1, 120))
def test_whatever_happens_the_budget_holds_and_is_given_back(
    requests: list[tuple[list[bytes], bool, bool]], limit: int
) -> None:
    budget = Budget(100)
    open_bodies: list[tuple[Body, int]] = []
    for chunks, is_chunked, is_whole in requests:
        size = sum(map(len, chunks))
        try:
            body = Body(None if is_chunked else size, limit, budget)
        except (TooLarge, QueueFull):
            continue
        try:
            assert asyncio.run(body.read(receiving(chunks, whole=is_whole))) == b"".join(chunks)
            assert is_whole
            assert size <= limit
            open_bodies.append((body, size))
        except ServingError:
            body.done()
        assert budget.used_bytes == sum(held for _, held in open_bodies) <= budget.limit_bytes
    for body, _ in open_bodies:
        body.done()
    assert budget.used_bytes == 0


def test_the_length_is_what_the_framing_says() -> None:
    assert declared_length({b"content-length": b"7"}) == 7
    assert declared_length({b"transfer-encoding": b"chunked"}) is None
    assert declared_length({}) == 0


def test_a_front_s_budget_is_four_bodies_and_at_least_64_mib() -> None:
    assert Budget.for_payloads(25 << 20).limit_bytes == 100 << 20
    assert Budget.for_payloads(1 << 20).limit_bytes == 64 << 20


def test_a_body_in_many_crumbs_takes_little_more_than_its_bytes() -> None:
    count = 300_000

    async def read() -> tuple[bytes, int]:
        left = count

        async def receive() -> dict[str, Any]:
            nonlocal left
            left -= 1
            return {"type": "http.request", "body": b"%02x" % (left & 255), "more_body": left > 0}

        tracemalloc.start()
        body = await Body(None, 1 << 20, Budget(1 << 20)).read(receive)
        return body, tracemalloc.get_traced_memory()[1]

    try:
        body, peak_bytes = asyncio.run(read())
    finally:
        tracemalloc.stop()
    assert body == b"".join(b"%02x" % (left & 255) for left in range(count - 1, -1, -1))
    assert peak_bytes < 4 * len(body)
