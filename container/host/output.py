"""What authors print becomes log lines with the model's name and the request's id."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading

#: Characters of one line at most; code that never ends its line must not fill the memory.
MAX_LINE = 16 << 10


class Lines(io.TextIOBase):
    """A text stream that logs each full line; what is written over with a carriage return (progress bars) is not one.

    A line belongs to the thread that writes it: models that print at the same moment do not get into each other's.
    """

    def __init__(self, logger: logging.Logger, level: int) -> None:
        self._logger = logger
        self._level = level
        self._begun = threading.local()

    @property
    def rest(self) -> str:
        """The line that this thread has begun."""
        text: str = getattr(self._begun, "text", "")
        return text

    def writable(self) -> bool:
        """Return True, as files open for writing do."""
        return True

    def write(self, text: str) -> int:
        """Log the lines that ``text`` completes; the rest waits for its end."""
        *lines, rest = (self.rest + text).split("\n")
        rest = _seen(rest)
        whole = len(rest) - len(rest) % MAX_LINE
        self._begun.text = rest[whole:]
        for line in (*lines, rest[:whole]):
            shown = _seen(line).removesuffix("\r")
            for start in range(0, len(shown), MAX_LINE):
                self._logger.log(self._level, shown[start : start + MAX_LINE])
        return len(text)


def _seen(line: str) -> str:
    """Return what a terminal shows of ``line`` by now; after a return at its end nothing is written over yet."""
    text = line.rstrip("\r")
    return text.rpartition("\r")[2] + line[len(text) :][:1]


def capture_output() -> None:
    """Send ``print`` and direct writes to stdout and stderr to the log, which keeps the real stderr."""
    real = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(real)
    sys.stdout = Lines(logging.getLogger("print"), logging.INFO)
    sys.stderr = Lines(logging.getLogger("print.stderr"), logging.WARNING)
