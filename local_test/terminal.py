"""What a person sees while the demo works: headings, colours where there is a terminal, progress."""

from __future__ import annotations

import os
import sys
import time

_BOLD, _RED, _GREEN = "1", "31", "32"


def coloured() -> bool:
    """True on a terminal, unless NO_COLOR is set (no-color.org) or the terminal is dumb."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say(text: str = "") -> None:
    """Print a line at once."""
    print(text, flush=True)


def heading(text: str) -> None:
    """Print a heading."""
    say(f"\n{_paint(text, _BOLD)}")


def verdict(right: bool, text: str) -> None:
    """Print what was checked, and whether it was right."""
    say(f"  {_paint('right', _GREEN) if right else _paint('WRONG', _RED)}  {text}")


def table(rows: list[list[str]]) -> None:
    """Print rows of cells, the first row being the head; all but the first column are right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        say("  " + "   ".join(cells).rstrip())


class Progress:
    """How far a long step is: one line that is written over on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, what: str, steps: int) -> None:
        self._what, self._steps = what, steps
        self._begin = self._told = time.monotonic()

    def at(self, step: int, note: str = "") -> None:
        """Say that ``step`` of the steps is done."""
        now = time.monotonic()
        last = step == self._steps
        pause_s = 0.2 if sys.stdout.isatty() else 10.0
        if not last and now - self._told < pause_s:
            return
        self._told = now
        line = f"  {self._what}: {step} of {self._steps}, {now - self._begin:.0f} s  {note}"
        if sys.stdout.isatty():
            print(f"\r{line:<78}", end="\n" if last else "", flush=True)
        else:
            say(line)


def _paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if coloured() else text
