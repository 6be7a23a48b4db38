"""What authors write reaches the log as text: one line a record, nothing that acts on the terminal that shows it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container import log

ACTS = "\x00\x07\x08\x1b\x7f\x9b\u2028\u202e\u2069"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    log.configure("tested", "debug", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_record_is_one_json_line_with_what_is_bound(lines: io.StringIO) -> None:
    with log.bind(model="cats", request="r1"):
        log.get("some.module").warning("it is %s", "größer", extra={"fields": {"bytes": 7}})
    log.get("some.module").info("after")
    bound, free = map(json.loads, lines.getvalue().splitlines())
    assert bound.pop("time").endswith("Z")
    assert bound == {
        "level": "warning",
        "process": "tested",
        "logger": "some.module",
        "message": "it is größer",
        "model": "cats",
        "request": "r1",
        "bytes": 7,
    }
    assert (free["message"], "model" in free) == ("after", False)


def test_a_traceback_is_one_field_of_one_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.get("x").exception("it failed")
    (line,) = lines.getvalue().splitlines()
    assert json.loads(line)["traceback"].endswith("ValueError: first\nsecond")


@given(text=st.text() | st.text(alphabet=ACTS + "ab\n\t"))
def test_nothing_that_acts_on_a_terminal_is_written_and_nothing_is_lost(text: str) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, text, None, None)
    line = log.JsonFormatter("tested").format(record)
    assert not any(letter in line for letter in ACTS + "\r\n\x85")
    assert json.loads(line)["message"] == text


def test_text_for_people_keeps_lines_and_tabs_and_shows_the_rest() -> None:
    assert log.visible("a\tb\n\x1b[31mred\x9b2J\u202e größer") == "a\tb\n\\u001b[31mred\\u009b2J\\u202e größer"
