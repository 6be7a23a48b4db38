"""What authors print, however they print it."""

from __future__ import annotations

import logging
import threading

import pytest

from container.host.output import MAX_LINE, Lines


@pytest.fixture
def printed(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level(logging.INFO)
    return Lines(logging.getLogger("print"), logging.INFO)


def test_each_line_is_a_record_once_it_is_whole(printed: Lines, caplog: pytest.LogCaptureFixture) -> None:
    print("one\ntw", end="", file=printed)
    assert caplog.messages == ["one"]
    print("o\n\n100 %s", file=printed)
    assert caplog.messages == ["one", "two", "100 %s"]


def test_of_a_line_that_is_written_over_the_last_state_is_kept(
    printed: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    for percent in range(101):
        printed.write(f"\r{percent} %" + " " * 1000)
    assert len(printed.rest) < 2000
    printed.write("\ndone\r\n")
    assert [message.strip() for message in caplog.messages] == ["100 %", "done"]


def test_a_return_that_comes_alone_writes_over_too(printed: Lines, caplog: pytest.LogCaptureFixture) -> None:
    for piece in ("waiting", "\r", "ready", "\n"):
        printed.write(piece)
    assert caplog.messages == ["ready"]


def test_threads_do_not_get_into_each_others_lines(printed: Lines, caplog: pytest.LogCaptureFixture) -> None:
    printed.write("mine, ")
    other = threading.Thread(target=print, args=("theirs",), kwargs={"file": printed})
    other.start()
    other.join()
    printed.write("too\n")
    assert caplog.messages == ["theirs", "mine, too"]


def test_a_line_without_an_end_does_not_grow_for_ever(printed: Lines, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(10):
        printed.write("x" * MAX_LINE)
    assert len(printed.rest) < MAX_LINE
    assert "".join([*caplog.messages, printed.rest]) == "x" * (10 * MAX_LINE)
    printed.write("\n" + "y" * (2 * MAX_LINE + 1) + "\n")
    assert max(map(len, caplog.messages)) <= MAX_LINE
    assert "".join(caplog.messages).count("y") == 2 * MAX_LINE + 1
