"""What a row hands back, and how it is shown and kept.

Every run writes ``results/<date>-<machine>-<row>.json`` (all samples) and the same as Markdown (``.md``).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.machine import Machine
from bench.pairs import Ratio, Series

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Options:
    """How thorough a run is. rounds: pairs a ratio; seconds: counted seconds a sample; peers: who takes part."""

    rounds: int = 5
    seconds: float = 4.0
    quick: bool = False
    peers: frozenset[str] = frozenset({"berth", "mms", "echo", "bare"})


@dataclass(frozen=True, slots=True)
class Table:
    """Some figures: a heading, the names of the columns, the rows as text."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def text(self) -> str:
        """Return it in Markdown."""
        lines = [f"| {' | '.join(self.columns)} |", "|" + "---|" * len(self.columns)]
        return "\n".join([f"**{self.title}**", "", *lines, *(f"| {' | '.join(row)} |" for row in self.rows)])


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure of goals.md: what it is, what is wanted, what was found, and the verdict."""

    figure: str
    wanted: str
    found: str
    verdict: str

    @staticmethod
    def ratio(figure: str, ratio: Ratio, goal: float, sense: Literal["least", "most"] = "least") -> Goal:
        """Return the goal that a ratio is at least, or at most, ``goal``."""
        return Goal(figure, f"at {sense} {goal:g} x", ratio.text(goal), ratio.verdict(goal, sense))

    @staticmethod
    def most(figure: str, series: Series, goal: float, unit: str, digits: int = 1) -> Goal:
        """Return the goal that the median of ``series`` is at most ``goal``."""
        verdict = "reached" if series.median <= goal else "missed"
        return Goal(figure, f"at most {goal:g} {unit}", f"{series.text(digits)} {unit}", verdict)


@dataclass(slots=True)
class Report:
    """The outcome of one row. samples: everything that was measured, for the JSON file; plots: SVG by name."""

    row: str
    title: str
    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    plots: dict[str, str] = field(default_factory=dict)

    def text(self, machine: Machine, command: str) -> str:
        """Return the whole report in Markdown."""
        parts = [f"# {self.row}: {self.title}", machine.text() + f"\n- `{command}`"]
        parts += [table.text() for table in self.tables]
        if self.goals:
            rows = [(goal.figure, goal.wanted, goal.found, goal.verdict) for goal in self.goals]
            parts.append(Table("Goals", ("figure", "wanted", "found", ""), rows).text())
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts) + "\n"

    def keep(self, machine: Machine, command: str, folder: Path = RESULTS) -> Path:
        """Write JSON, plots and Markdown into ``folder``; return the path of the last."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{machine.date[:10]}-{machine.slug}-{self.row}"
        everything = {"machine": dataclasses.asdict(machine), "command": command, **dataclasses.asdict(self)}
        del everything["plots"]
        (folder / f"{stem}.json").write_text(json.dumps(everything, indent=1) + "\n")
        shown = ""
        for name, plot in self.plots.items():
            (folder / f"{stem}-{name}.svg").write_text(plot)
            shown += f"\n![{name}]({stem}-{name}.svg)\n"
        page = folder / f"{stem}.md"
        page.write_text(self.text(machine, command) + shown)
        return page
