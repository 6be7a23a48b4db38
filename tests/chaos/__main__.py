"""``make chaos``: parsers and archives fuzzed, requests generated, then the fault table; under three minutes.

python -m tests.chaos                the short form
python -m tests.chaos --write        also writes docs/faults.md's tables

Exits with 1 if a parser raised what it must not, an archive got out, an answer was wrong, doubled or told too much, or
a registered model was lost. Where it is at is told on stderr.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import time

from tests.chaos import faults, fuzz, tars
from tests.server import ROOT

PAGE = ROOT / "docs" / "faults.md"
#: What stands between these lines of the page is written by ``--write``.
MARKS = "<!-- made by python -m tests.chaos --write -->", "<!-- end -->"
#: Schemathesis: inputs tried for each operation.
EXAMPLES = 12


def _requests() -> tuple[bool, str]:
    """Send generated requests to a real server; return whether one was answered wrongly, and the count in words."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-s", "tests/strangers/test_openapi.py"]
    environ = {**os.environ, "STRANGERS_EXAMPLES": str(EXAMPLES)}
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=200, check=False)
    counted = re.search(r"(\d+) generated", ended.stdout)
    count = int(counted[1]) if counted else 0
    if ended.returncode or not count:
        return True, f"requests (schemathesis): WRONG\n{ended.stdout[-3000:]}"
    return False, f"{count:,} requests made by schemathesis from our /openapi.json: 0 wrong"


def _machine() -> str:
    """Return where and when, in a line."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return (
        f"{datetime.date.today()}, commit {commit.stdout.strip() or 'unknown'}, {len(os.sched_getaffinity(0))} cores "
        f"({platform.machine()}), {memory} GiB, Linux {platform.release()}, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run everything; return 1 if anything was found."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__, formatter_class=raw)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/faults.md")
    parser.add_argument(
        "--seconds", type=int, default=fuzz.SECONDS, help="seconds for each parser (default %(default)s)"
    )
    options = parser.parse_args()
    started, machine = time.monotonic(), _machine()
    _say(f"... {len(fuzz.targets())} parsers, {options.seconds} s each")
    parsers = fuzz.run_all(options.seconds)
    _say(f"... {tars.COUNT:,} tars")
    escaped, archives = tars.report()
    _say("... requests")
    answered_wrong, requests = _requests()
    failed, rows = faults.report()
    tried = sum(each.tried for each in parsers)
    counts = f"{tried:,} inputs to {len(parsers)} parsers (atheris, {options.seconds} s each). {archives}. {requests}."
    tables = f"{machine}.\n\n{faults.table(rows)}\n\n## Inputs tried\n\n{counts}\n\n{fuzz.table(parsers)}"
    print("\n".join([*escaped[:20], tables, f"\n{time.monotonic() - started:.0f} s"]))
    if options.write:
        head, _, rest = PAGE.read_text().partition(MARKS[0])
        PAGE.write_text(f"{head}{MARKS[0]}\n\n{tables}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    return int(bool(escaped) or answered_wrong or failed or any(each.found for each in parsers))


if __name__ == "__main__":
    sys.exit(main())
