"""What authors print becomes log lines with the model's name and the request's id."""

from __future__ import annotations

import io
import logging
import os
import sys


class _Lines(io.TextIOBase):
    """A text stream that logs each full line."""

    def __init__(self, logger: logging.Logger, level: int) -> None:
        self._logger = logger
        self._level = level
        self._rest = ""

    def writable(self) -> bool:
        """Return True, as files open for writing do."""
        return True

    def write(self, text: str) -> int:
        """Log the lines that ``text`` completes; the rest waits for its end."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line:
                self._logger.log(self._level, line)
        return len(text)


def capture_output() -> None:
    """Send ``print`` and direct writes to stdout and stderr to the log, which keeps the real stderr."""
    real = os.fdopen(os.dup(2), "w", buffering=1)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(real)
    sys.stdout = _Lines(logging.getLogger("print"), logging.INFO)
    sys.stderr = _Lines(logging.getLogger("print.stderr"), logging.WARNING)
