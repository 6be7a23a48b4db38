"""The fault table: break one thing under load, note what callers saw and how long until every model answers again.

python -m tests.chaos.faults [NAME ...]

Faults that need the same ground meet the same server, one after the other: it has to live through all of them. It has
four models (two of archives' code, two of ours) and callers that check every answer. A fault passes if nothing
registered is lost, no answer is wrong or doubled, the guilty model's caller is told what it must be told, and all
models answer again.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import httpx

from tests.chaos import grounds
from tests.chaos.breaking import FAULTS, Fault
from tests.chaos.traffic import Callers, Model, Told, house
from tests.server import Server, running

#: Callers are watched for this long before the fault, and after all models answer again.
CALM_S = 0.3
#: All models must answer again within this.
BACK_S = 60.0
COLUMNS = (
    "fault",
    "its own caller was told",
    "others were told besides 200",
    "longest wait of others",
    "all answer after",
    "outcome",
)


@dataclass
class Row:
    """One fault and what came of it; why_not: it could not be tried here."""

    fault: str
    own: list[int] = field(default_factory=list)
    told: Told = field(default_factory=Told)
    back_s: float = 0.0
    pings: set[int] = field(default_factory=lambda: {200})
    wrong: list[str] = field(default_factory=list)
    why_not: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as it is printed."""
        if self.why_not:
            return self.fault, "", "", "", "", f"not tried: {self.why_not}"
        others = ", ".join(f"{count} x {code}" for code, count in sorted(self.told.codes.items()) if code != "200")
        pings = "" if self.pings == {200} else f"; /ping {', '.join(map(str, sorted(self.pings)))}"
        return (
            self.fault,
            ", ".join(map(str, self.own)),
            (others or "nothing") + pings,
            f"{self.told.longest_s:.1f} s",
            f"{self.back_s:.1f} s",
            "; ".join(self.wrong)[:400] or f"nothing lost, {self.told.codes['200']} answers right",
        )


@contextmanager
def _server(ground: str) -> Iterator[Server]:
    """A server on ``ground``: plain, disks (two small ones), clock (one that jumps), mms. Raises CannotBe."""
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environ: dict[str, str] = {"BERTH_DOOR": "mms"} if ground == "mms" else {}
        if ground == "plain":
            environ |= grounds.scarce(base)
        if ground == "disks":
            for place in ("state", "models"):
                stack.enter_context(grounds.small_disk(base / place))
        if ground == "clock":
            environ |= grounds.movable_clock(base)
        yield stack.enter_context(running(base, **environ))


def _try(fault: Fault, server: Server, models: dict[str, Model]) -> Row:
    """Break ``server`` under load."""
    for model in models.values():
        model.may_say = frozenset({404}) if fault.forgets else frozenset()
    callers = Callers(server, models, echoes=fault.ground != "mms")
    time.sleep(CALM_S)
    row = Row(fault.name, told=callers.told)
    broken = time.monotonic()
    try:
        row.own = fault.do(server)
    except (httpx.HTTPError, AssertionError) as error:
        row.wrong.append(f"breaking it failed: {type(error).__name__}: {str(error)[:200]}")
    except grounds.CannotBe as error:
        row.why_not = str(error)
    row.pings = _until_all_answer(server, callers.told, models, broken)
    callers.stop()
    told = row.told
    row.back_s = max([0.0, *(told.failed_at.get(name, broken) - broken for name in models)])
    row.wrong += told.wrong
    row.wrong += [f"{name} never answered again" for name in models if told.answered_at.get(name, 0.0) < broken]
    row.wrong += [f"{name} is lost" for name in sorted(set(models).difference(server.names()))]
    if fault.own is not None and row.own != fault.own and not row.why_not:
        row.wrong.append(f"the guilty model's caller was due {fault.own}")
    if row.back_s >= BACK_S:
        row.wrong.append("too late")
    return row


def _until_all_answer(server: Server, told: Told, models: dict[str, Model], broken: float) -> set[int]:
    """Ping until every model has answered after its last failure for a while; return what /ping said."""
    pings: set[int] = set()
    calm_since = time.monotonic()
    while time.monotonic() - broken < BACK_S:
        try:
            pings.add(server.http.get("/ping", timeout=5).status_code)
        except httpx.TransportError:
            pass  # a worker that was killed took the connection along
        now = time.monotonic()
        if any(told.answered_at.get(name, 0.0) <= max(told.failed_at.get(name, 0.0), broken) for name in models):
            calm_since = now
        if now - calm_since > CALM_S:
            break
        time.sleep(0.02)
    return pings


def read_only_at_start() -> Row:
    """Start a server on a read-only state folder."""
    row = Row("state folder read-only at start")
    with tempfile.TemporaryDirectory() as place:
        state = Path(place) / "state"
        state.mkdir()
        try:
            with grounds.read_only(state):
                server = Server(Path(place))
                status = server.process.wait(60)
                server.http.close()
        except grounds.CannotBe as error:
            row.why_not = str(error)
            return row
        if status != 1 or "cannot write to the state folder" not in server.log() or "Traceback" in server.log():
            row.wrong.append(f"exit status {status}: {server.log()[-300:]}")
    return row


def table(rows: list[Row]) -> str:
    """Return the fault table in Markdown."""
    cells = [COLUMNS, ("---",) * len(COLUMNS), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(each)} |" for each in cells)


def report(names: list[str] | None = None) -> tuple[bool, list[Row]]:
    """Try ``names``, or all; return whether one did not pass, and the rows. Tells on stderr where it is."""
    rows: list[Row] = []
    chosen = [fault for fault in FAULTS if not names or fault.name in names]
    for ground, faults in groupby(chosen, key=lambda fault: fault.ground):
        some = list(faults)
        try:
            with _server(ground) as server:
                models = house(server)
                for fault in some:
                    started = time.monotonic()
                    rows.append(_try(fault, server, models))
                    _tell(rows[-1], time.monotonic() - started)
        except grounds.CannotBe as error:
            rows += [Row(fault.name, why_not=str(error)) for fault in some]
        except AssertionError as error:
            rows.append(Row(f"the server of {some[-1].name!r}", wrong=[str(error)[:400]]))
            _tell(rows[-1], 0.0)
    if not names:
        rows.append(read_only_at_start())
        _tell(rows[-1], 0.0)
    return any(row.wrong for row in rows), rows


def _tell(row: Row, took_s: float) -> None:
    verdict = "not tried" if row.why_not else "WRONG" if row.wrong else "ok"
    print(f"... {row.fault}: {verdict}, {took_s:.1f} s", file=sys.stderr, flush=True)


def main(names: list[str]) -> int:
    """Run ``names``, or all; print the table; return 1 if a fault did not pass."""
    failed, rows = report(names)
    print(table(rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
