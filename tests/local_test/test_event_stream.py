"""Frames as botocore's own parser reads them."""

from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from local_test import event_stream

text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=50)


@given(st.dictionaries(text.filter(lambda s: 0 < len(s.encode()) < 256), text, max_size=5), st.binary(max_size=2000))
def test_a_frame_is_read_back_as_it_was_written(headers, payload):
    buffer = EventStreamBuffer()
    buffer.add_data(event_stream.frame(headers, payload))
    [message] = list(buffer)
    assert (message.headers, message.payload) == (headers, payload)


@given(st.lists(st.binary(max_size=100), max_size=5), st.integers(1, 50))
def test_frames_survive_being_cut_anywhere(parts, width):
    sent = b"".join(event_stream.payload_part(part) for part in parts)
    buffer = EventStreamBuffer()
    received = []
    for at in range(0, len(sent), width):
        buffer.add_data(sent[at : at + width])
        received += [message.payload for message in buffer]
    assert received == parts
