"""Try archives or model folders before they are deployed: load, ask, sink, ask again, say what they take.

Examples:
  berth check model.tar.gz
  berth check ./my-model --payload cat.jpg --content-type image/jpeg
  berth check archives/*.tar.gz --json           one after the other, for scripts

Its code runs in processes of their own, as on the server. Exit status: 0 it would serve, 1 it would not, with the
reason and the mend, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from container.archive.describe import describe
from container.cli import findings, rehearsal
from container.cli.invoke import TYPES
from container.cli.terminal import BOLD, DIM, GREEN, RED, YELLOW, Progress, amount, paint
from container.engine.report import Fault, Report, Request
from container.errors import ServingError
from container.log import visible
from container.payload import JSON, Payload
from container.settings import Settings

#: More than anybody would register.
_MANY = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``berth check``."""
    add = parser.add_argument
    add("path", type=Path, nargs="+", metavar="PATH", help="a .tar.gz, or the folder that it would be unpacked to")
    add("--payload", type=Path, metavar="FILE", help="a request to try (default: the model's own example)")
    add("--content-type", metavar="TYPE", help="of the request (default: by the file's ending, else JSON)")
    add("--accept", default="", metavar="TYPE", help="the type of answer to ask for")
    add("--attributes", default="", metavar="TEXT", help="X-Amzn-SageMaker-Custom-Attributes of the request")
    add("--load-limit-s", type=float, default=300.0, metavar="S", help="how long it may load (default %(default)s)")
    add("--json", action="store_true", help="print what was found, one JSON object a line")
    add("-v", "--verbose", action="store_true", help="show the traceback of the model's own code")


def run(options: argparse.Namespace) -> int:
    """Try the models; return the exit status."""
    try:
        request = Request("", "", _payload(options), limit_s=options.load_limit_s)
        for path in options.path:
            path.stat()
    except OSError as error:
        print(f"berth check: {error.filename}: {(error.strerror or 'cannot be read').lower()}", file=sys.stderr)
        return 2
    faults = 0
    with rehearsal.Rehearsal() as trial:
        for path in options.path:
            tried = tried_out(trial, path, request)
            faults += tried.report.fault is not None
            if options.json:
                print(
                    msgspec.json.encode({"path": str(path), **msgspec.to_builtins(tried.report)}).decode(), flush=True
                )
            else:
                show(path, tried, verbose=options.verbose)
    return 1 if faults else 0


def _payload(options: argparse.Namespace) -> Payload | None:
    if options.payload is None:
        return None
    kind = options.content_type or TYPES.get(options.payload.suffix.lower(), JSON)
    return Payload(options.payload.read_bytes(), kind, options.accept, "", options.attributes)


def tried_out(trial: rehearsal.Rehearsal, path: Path, request: Request) -> rehearsal.Tried:
    """Unpack if need be, look at the layout, and try; whatever is wrong by then is the report's fault."""
    settings = Settings.of_process()
    with Progress() as progress:
        phase, folder = "unpack", path
        try:
            progress.phase(f"unpacking {path.name}")
            with rehearsal.unpacked(path, progress.bytes) as folder:
                phase = "layout"
                manifest = describe(folder, program=settings.program, service=settings.service)
                tried = trial.attempt(folder, request, lambda name: progress.phase(f"{path.name}: {_doing(name)}"))
                tried.report.kind, tried.report.task = manifest.kind, manifest.task
                return tried
        except ServingError as error:
            message = error.message.replace(str(folder), str(path))
            return rehearsal.Tried(Report(fault=Fault(phase, error.code, message)), "")


def _doing(phase: str) -> str:
    return findings.PHASES.get(phase, phase)


def show(path: Path, tried: rehearsal.Tried, *, verbose: bool) -> None:
    """Print what was found; what the model says is text, nothing of it acts on the terminal."""
    report, fault = tried.report, tried.report.fault
    if fault is None:
        print(f"{paint('would serve', GREEN)}  {path}")
    else:
        print(f"{paint('would not serve', RED)}  {path}")
        print(f"  {paint(f'{_doing(fault.phase)}:', BOLD)} {visible(fault.message)}")
    if report.place:
        _rows(report)
    for note in findings.advice(report):
        print(f"  {paint('note', YELLOW)}  {visible(note)}")
    if tried.traceback and verbose:
        print("\n".join(f"  {paint(line, DIM)}" for line in visible(tried.traceback).splitlines()))
    elif tried.traceback and fault is not None:
        print("  its code raised an exception; -v shows the traceback")


def _rows(report: Report) -> None:
    counts = findings.counts(report)
    what = f"{report.kind}, {report.task}" if report.task else report.kind
    rows = [("kind", what), ("runs in", findings.PLACES.get(report.place, report.place))]
    held = ", ".join(f"{amount(nbytes)} on the {tier} tier" for tier, nbytes in report.bytes.items())
    rows.append(("bytes", f"{amount(report.files_bytes)} on disk, {held}"))
    if counts:
        many = (f"{count}" if count < _MANY else f"over {_MANY}" for _, count in counts)
        rows.append(
            ("at a time", ", ".join(f"{count} on {name}" for count, (name, _) in zip(many, counts, strict=True)))
        )
    if report.answer_type:
        start = " ".join(report.answer_start[:70].split())
        more = "..." if len(report.answer_start) > 70 else ""
        rows.append(("answer", f"{report.answer_type}, {amount(report.answer_bytes)}: {start}{more}"))
    rows += findings.times(report)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"  {paint(name.ljust(width), DIM)}  {visible(text)}")
