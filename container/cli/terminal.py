"""What a person at a terminal sees while a verb works; nothing of it where no terminal is, so logs stay readable."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from container.settings import wants_colour

GREEN, RED, YELLOW, BOLD, DIM = "32", "31", "33", "1", "2"
_WIDTH = 28
_PAUSE_S = 0.1


def paint(text: str, code: str) -> str:
    """Return ``text`` in a colour, for a terminal that wants colours on stdout."""
    return f"\x1b[{code}m{text}\x1b[0m" if wants_colour(sys.stdout) else text


def amount(nbytes: float) -> str:
    """Return bytes as people read them: "1.4 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024 or unit == "GiB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    raise AssertionError("the loop returns")


class Progress:
    """One line on stderr, written over as the work goes on; only on a terminal, and gone when it ends."""

    def __init__(self) -> None:
        self._shows = sys.stderr.isatty()
        self._what = ""
        self._last_s = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._write("")

    def phase(self, what: str) -> None:
        """Say what is being done now."""
        self._what = what
        self._write(f"{what} ...")

    def bytes(self, done: int, total: int) -> None:
        """Show a bar for the phase: ``done`` of ``total`` bytes."""
        now = time.monotonic()
        if now - self._last_s < _PAUSE_S and done < total:
            return
        self._last_s = now
        filled = _WIDTH * done // total if total else _WIDTH
        bar = "#" * filled + "-" * (_WIDTH - filled)
        self._write(f"{self._what} [{bar}] {amount(done)} of {amount(total)}")

    def _write(self, line: str) -> None:
        if self._shows:
            sys.stderr.write(f"\r\x1b[2K{line}")
            sys.stderr.flush()
