from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.errors import Failure
from container.payload import Payload
from container.wire import frames
from container.wire import messages as m

payloads = st.builds(Payload, st.binary(max_size=200), st.text(max_size=20), st.text(max_size=20))
replies = st.one_of(
    st.builds(m.Answer, st.integers(0, 2**40), st.one_of(payloads, st.builds(Failure, st.text(), st.text()))),
    st.builds(m.Loaded, st.integers(0, 2**40), st.integers(0, 2**50)),
    st.builds(m.Page, st.integers(0, 9), st.lists(st.builds(m.Entry, st.text(), st.text()))),
)


@given(st.lists(replies, max_size=8), st.data())
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(
    messages: list[m.Reply], data: st.DataObject
) -> None:
    stream = b"".join(bytes(frames.encode(message)) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader = frames.FrameReader(frames.REPLIES)
    out: list[m.Reply] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        out += reader.feed(stream[start:end])
    assert out == messages


def test_a_frame_over_the_limit_is_an_error_before_its_body_is_awaited() -> None:
    reader = frames.FrameReader(frames.REPLIES, max_bytes=10)
    with pytest.raises(frames.FrameError, match="11 bytes is over the limit of 10"):
        reader.feed((11).to_bytes(4, "little"))


@given(st.binary(min_size=1, max_size=50))
def test_bytes_that_are_no_message_are_a_frame_error_and_nothing_else(body: bytes) -> None:
    reader = frames.FrameReader(frames.CONTROL)
    try:
        out = reader.feed(len(body).to_bytes(4, "little") + body)
    except frames.FrameError:
        return
    assert [bytes(frames.encode(message))[4:] for message in out] != []
