"""Line plots as SVG, written by hand: one panel under the other over one axis of time. Pure."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

COLOURS = ("#0b6e99", "#c0392b", "#2e7d32", "#8e44ad", "#d68910", "#566573")
_WIDTH, _LEFT, _RIGHT, _PANEL, _GAP, _TOP = 860, 64, 150, 120, 34, 46
#: More points than pixels show nothing.
_MOST_POINTS = 400


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: its name and its points (x, y); None for a y breaks it."""

    name: str
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves on one axis. top: of the axis; None = a round number above the largest value."""

    title: str
    lines: Sequence[Line]
    top: float | None = None
    marks: Sequence[tuple[float, str]] = field(default=())


def svg(title: str, panels: Sequence[Panel], x_label: str, x_end: float) -> str:
    """Return the plot; x runs from 0 to ``x_end``."""
    height = _TOP + len(panels) * (_PANEL + _GAP) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="18" font-size="14">{html.escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        parts += _panel(panel, _TOP + number * (_PANEL + _GAP), x_end)
    parts.append(f'<text x="{_LEFT}" y="{height - 6}">{html.escape(x_label)}</text></svg>')
    return "\n".join(parts) + "\n"


def _panel(panel: Panel, y: int, x_end: float) -> list[str]:
    values = [value for line in panel.lines for _, value in line.points if value is not None]
    top = panel.top or round_up(max(values, default=1.0))
    right = _WIDTH - _RIGHT
    parts = [f'<text x="{_LEFT}" y="{y - 6}" font-weight="bold">{html.escape(panel.title)}</text>']
    for part in (0.0, 0.5, 1.0):
        level = y + _PANEL * (1 - part)
        parts.append(f'<line x1="{_LEFT}" y1="{level:.1f}" x2="{right}" y2="{level:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{level + 4:.1f}" text-anchor="end">{top * part:g}</text>')
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = _LEFT + (right - _LEFT) * part
        parts.append(
            f'<text x="{at:.1f}" y="{y + _PANEL + 13}" text-anchor="middle" fill="#777">{x_end * part:g}</text>'
        )
    for at, name in panel.marks:
        x = _LEFT + (right - _LEFT) * at / x_end
        parts.append(
            f'<line x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + _PANEL}" stroke="#f0b0a8">'
            f"<title>{html.escape(name)}</title></line>"
        )
    for number, line in enumerate(panel.lines):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<path d="{_path(line, y, top, x_end)}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
        parts.append(
            f'<text x="{right + 8}" y="{y + 12 + 15 * number}" fill="{colour}">{html.escape(line.name)}</text>'
        )
    return parts


def _path(line: Line, y: int, top: float, x_end: float) -> str:
    step = -(-len(line.points) // _MOST_POINTS)
    words, pen_up = [], True
    for at, value in list(line.points)[:: max(1, step)]:
        if value is None:
            pen_up = True
            continue
        x = _LEFT + (_WIDTH - _RIGHT - _LEFT) * min(1.0, at / x_end)
        words.append(f"{'M' if pen_up else 'L'}{x:.1f} {y + _PANEL * (1 - min(1.0, value / top)):.1f}")
        pen_up = False
    return " ".join(words)


def round_up(value: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, ... at or above ``value``; 1 for nothing."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= value * (1 - 1e-9))
