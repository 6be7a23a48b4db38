"""A model tried in processes of their own, seen from the one that asked: start it, follow it, read its log.

What an archive's code does, crashes and hangs included, happens elsewhere and ends with the trial.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from container.archive.unpack import unpack
from container.engine.report import EVENTS, Fault, Report, Request
from container.settings import Settings, child_environment

Progress = Callable[[int, int], None]
_ARCHIVE_RATIO = 200
_LEAST_BYTES = 1 << 30
_END_S = 10.0
#: What libraries put into their messages for terminals.
_COLOURS = re.compile(r"\x1b\[[\d;]*m")


class Tried(NamedTuple):
    """What came of a trial. traceback: of the model's own code, "" if it raised nothing."""

    report: Report
    traceback: str


@contextmanager
def unpacked(path: Path, progress: Progress | None = None) -> Iterator[Path]:
    """Yield the folder of the model at ``path``: itself, or what is in it if it is an archive, for as long as needed.

    Raises what ``unpack`` raises.
    """
    if path.is_dir():
        yield path.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="berth-check-") as place:
        limit = max(_LEAST_BYTES, _ARCHIVE_RATIO * path.stat().st_size)
        unpack(path, Path(place) / "model", max_bytes=limit, progress=progress)
        yield Path(place) / "model"


class Rehearsal:
    """Models tried one after the other, in one engine while it lives; use it as a context manager."""

    def __init__(self) -> None:
        self._state = tempfile.TemporaryDirectory(prefix="berth-trial-")
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._count = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._events: IO[bytes] | None = None

    def __enter__(self) -> Rehearsal:
        return self

    def __exit__(self, *raised: object) -> None:
        self._end()
        self._log.close()
        self._state.cleanup()

    def attempt(self, folder: Path, request: Request, on_phase: Callable[[str], None]) -> Tried:
        """Try the model in ``folder``; ``on_phase`` is called with the names of the phases as they begin."""
        self._count += 1
        name = f"checked-{self._count}"
        self._log.seek(0, os.SEEK_END)
        begin = self._log.tell()
        if self._process is None:
            self._start()
        report = self._report(msgspec.structs.replace(request, name=name, folder=str(folder)), on_phase)
        if report.fault is not None:
            message = _COLOURS.sub("", report.fault.message).replace(f"model {name!r}", "the model")
            report.fault = msgspec.structs.replace(report.fault, message=message)
        lines = _lines(self._log, begin)
        report.notes = list(dict.fromkeys(_notes(lines, name)))
        own = (line["traceback"] for line in reversed(lines) if line.get("model") == name and "traceback" in line)
        return Tried(report, next(own, ""))

    def _start(self) -> None:
        state = Path(self._state.name)
        kept = Settings.of_process().state_dir / "environments"
        kept.mkdir(parents=True, exist_ok=True)
        if not (state / "environments").exists():  # what requirements.txt asks for is built once, for the server too
            (state / "environments").symlink_to(kept)
        environ = child_environment(
            BERTH_STATE_DIR=str(state),
            BERTH_MODELS="/",
            BERTH_LOG_LEVEL="info",
            BERTH_QUEUE_LENGTH="100",
            SAGEMAKER_BASE_DIR=str(state),
        )
        ours, theirs = os.pipe()
        command = [
            sys.executable,
            "-m",
            "container.engine.trial",
            "--events",
            str(theirs),
            "--parent",
            str(os.getpid()),
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env=environ,
            pass_fds=(theirs,),
            start_new_session=True,  # a terminal's Ctrl-C reaches this process, and ends the other with it
        )
        os.close(theirs)
        self._events = os.fdopen(ours, "rb")

    def _report(self, request: Request, on_phase: Callable[[str], None]) -> Report:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._events is not None
        phase = "load"
        try:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()
            for line in self._events:
                event = EVENTS.decode(line)
                if isinstance(event, Report):
                    return event
                phase = event.name
                on_phase(phase)
        except BrokenPipeError:
            pass
        status = self._end()
        end = f"the process that tried it ended with status {status}; -v shows its last words"
        return Report(fault=Fault(phase, "server.internal", end))

    def _end(self) -> int:
        """End the process; return its exit status."""
        process, events, self._process, self._events = self._process, self._events, None, None
        if process is None or events is None:
            return 0
        assert process.stdin is not None
        events.close()
        with process:
            try:
                process.stdin.close()  # upon which it ends by itself
                return process.wait(0.0 if sys.exc_info()[0] is not None else _END_S)
            except (subprocess.TimeoutExpired, BrokenPipeError):
                process.kill()
                return process.wait()


def _lines(log: IO[bytes], begin: int) -> list[dict[str, Any]]:
    """The log's lines from ``begin`` on; what was written past it (a crash's last words) is a line of its own."""
    log.seek(begin)
    found = []
    for raw in log.read().decode("utf-8", "replace").splitlines():
        try:
            line = json.loads(raw)
        except ValueError:
            line = {"level": "raw", "message": raw}
        found.append(line if isinstance(line, dict) else {"level": "raw", "message": raw})
    return found


def _notes(lines: list[dict[str, Any]], name: str) -> Iterator[str]:
    """What the log warns of that the author of the model can mend."""
    for line in lines:
        ours = str(line.get("logger", "")).startswith("container.model")
        if line.get("level") == "warning" and line.get("model") == name and ours:
            yield str(line["message"]).replace(f"model {name}", "the model")
