"""What came of a soak: is all right and flat, the tables, the plot."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field

from bench.plot import Line, Panel, svg
from bench.report import Goal, Report, Table
from tests.server import Server
from tests.soak import flat
from tests.soak.census import FIGURES, ROLES, Census
from tests.soak.crew import Log
from tests.soak.faults import Faults, Visits

#: Processes that nothing kills in the judged time, and whose figures must not rise.
JUDGED = ("supervisor", "engine", "guests", "front")
#: Points of each curve that are kept in the JSON file.
_KEPT = 120


@dataclass
class Run:
    """One soak. limit: bytes of models that may be in memory."""

    seconds: float
    per_s: float
    limit: int
    log: Log
    census: Census
    faults: Counter[str] = field(default_factory=Counter)
    moments: list[tuple[float, str]] = field(default_factory=list)
    healed: int = 0
    visits: int = 0
    promotions: float = 0.0

    def note(self, faults: Faults, visits: Visits, server: Server) -> None:
        """Take over what was done."""
        began = self.census.began_s
        self.faults, self.healed, self.visits = faults.done, faults.healed, visits.made
        self.moments = [(at - began, what) for at, what in faults.moments]
        text = server.http.get("/metrics").text
        self.promotions = float(text.partition("\nberth_promotions_total ")[2].split("\n")[0] or 0)

    @property
    def verdicts(self) -> list[flat.Verdict]:
        """Return whether each figure of each judged part is flat, and the server's files."""
        judged = [sample for sample in self.census.samples if sample.at_s >= self.seconds / 3]
        if len(judged) < flat.FEWEST:
            return []
        found = []
        for role in JUDGED:
            mine = [sample for sample in judged if role in sample.figures]
            for figure in (name for name in FIGURES if name in flat.BOUNDS):
                values = [sample.figures[role][FIGURES.index(figure)] for sample in mine]
                found.append(flat.judge(role, figure, [sample.at_s for sample in mine], values))
        times = [sample.at_s for sample in judged]
        found.append(flat.judge("state and temporary folders", "files", times, [float(s.files) for s in judged]))
        return found

    @property
    def replaced(self) -> list[str]:
        """Return the judged parts whose processes changed in the judged time, which nothing was to do."""
        judged = [sample for sample in self.census.samples if sample.at_s >= self.seconds / 3]
        changed = []
        for role in JUDGED:
            seen = {tuple(sample.pids.get(role, ())) for sample in judged}
            if len(seen) > 1:
                changed.append(f"{role}: {len(seen)} sets of processes")
        return changed

    @property
    def failed(self) -> bool:
        """Whether anything was wrong."""
        return bool(
            self.log.wrong_count
            or self.log.unexcused_count
            or self.replaced
            or any(not each.flat for each in self.verdicts)
        )


def progress(run: Run, faults: Faults, visits: Visits) -> str:
    """Return one line on how it goes."""
    last, log = run.census.samples[-1], run.log
    memory = sum(figures[0] for figures in last.figures.values())
    return (
        f"{last.at_s:5.0f} s: {log.codes['200']} right, {log.wrong_count} wrong, {log.excused} refused under a fault, "
        f"{log.unexcused_count} without, "
        f"{visits.made} loads and unloads, {faults.done.total()} faults; {memory:.0f} MiB, "
        f"{last.cpu_s / max(last.at_s, 1):.2f} cores"
    )


def report(run: Run, minutes: float) -> Report:
    """Return the tables."""
    log = run.log
    told = Report(f"soak-{minutes:g}min", f"{minutes:g} minutes of mixed traffic with faults")
    asked = log.codes.total()
    refused = ", ".join(f"{count} x {code}" for code, count in sorted(log.codes.items()) if code != "200")
    rows = [
        ("requests answered and checked", f"{asked:,}"),
        ("right", f"{log.codes['200'] - 0:,}"),
        ("wrong answers, models lost", f"{log.wrong_count}"),
        ("refused though no fault explains it", f"{log.unexcused_count}"),
        ("refused while a fault explains it", f"{log.excused} ({refused or 'none'})"),
        ("callers that hung up", f"{log.hung_up}"),
        ("models registered, with room for", f"15, {run.limit / 2**20:.0f} MiB"),
        ("rises to the device", f"{run.promotions:.0f} (of the last engine)"),
        ("visitors loaded, asked and unloaded", f"{run.visits}"),
        ("faults", ", ".join(f"{count} x {what}" for what, count in run.faults.items())),
        ("quarantined models loaded anew", f"{run.healed}"),
    ]
    told.tables.append(Table("What was asked and told", ("", ""), rows))
    told.tables.append(
        Table(
            "Rise over the last two thirds",
            ("", "figure", "median", "rise", "bound", ""),
            [
                (
                    v.role,
                    v.figure,
                    f"{v.median:.1f}",
                    f"{v.rise:+.2f}",
                    f"{v.bound:.1f}",
                    "flat" if v.flat else "CREEPS",
                )
                for v in run.verdicts
            ],
        )
    )
    wrong = "reached" if not log.wrong_count else "missed"
    told.goals = [
        Goal("wrong answers", "0", str(log.wrong_count), wrong),
        Goal(
            "figures that creep",
            "0",
            str(sum(not v.flat for v in run.verdicts)),
            _met(all(v.flat for v in run.verdicts)),
        ),
        Goal("parts replaced though nothing killed them", "0", "; ".join(run.replaced) or "0", _met(not run.replaced)),
    ]
    told.notes = [f"wrong: {each}" for each in log.wrong] + [f"no fault: {each}" for each in log.unexcused]
    told.notes.append(flat.__doc__.split("\n\n")[1].replace("\n", " ") if flat.__doc__ else "")
    told.notes.append("Engine, guests and front are killed in the first third only; processes of one model to the end.")
    told.samples = {"curves": _curves(run), "faults": run.moments, "by_model": dict(log.by_model)}
    return told


def _met(reached: bool) -> str:
    return "reached" if reached else "missed"


def _curves(run: Run) -> dict[str, object]:
    """Return each role's figures, thinned out by medians."""
    samples = run.census.samples
    step = max(1, len(samples) // _KEPT)
    groups = [samples[at : at + step] for at in range(0, len(samples), step)]
    curves: dict[str, object] = {"at_s": [round(group[0].at_s, 1) for group in groups]}
    for role in ROLES:
        for index, figure in enumerate(FIGURES):
            curves[f"{role} {figure}"] = [
                round(statistics.median(each.figures.get(role, (0.0,) * len(FIGURES))[index] for each in group), 2)
                for group in groups
            ]
    curves["files"] = [group[-1].files for group in groups]
    return curves


def plot(run: Run) -> str:
    """Return the plot: memory, descriptors, threads, mappings by part, faults as strokes."""
    titles = {
        "anonymous_mib": "memory of its own, MiB (a stroke: a fault)",
        "rss_mib": "RSS, MiB",
        "descriptors": "descriptors",
        "threads": "threads",
        "maps": "mappings",
    }
    minutes = [(at / 60, what) for at, what in run.moments]
    panels = []
    for figure, title in titles.items():
        index = FIGURES.index(figure)
        lines = [
            Line(
                role, [(s.at_s / 60, s.figures[role][index] if role in s.figures else None) for s in run.census.samples]
            )
            for role in ROLES
        ]
        panels.append(Panel(title, lines, marks=minutes if figure == "anonymous_mib" else ()))
    title = (
        f"{run.seconds / 60:g} minutes: {run.log.codes['200']:,} right answers, {run.log.wrong_count} wrong, "
        f"{run.faults.total()} faults, {run.visits} loads and unloads"
    )
    return svg(title, panels, "minutes", run.seconds / 60)
