"""``make chaos``: the parsers fuzzed, then the fault table; under three minutes.

python -m tests.chaos                the short form
python -m tests.chaos --write        also writes the tables into docs/faults.md
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
import time

from tests.chaos import faults, fuzz
from tests.server import ROOT

PAGE = ROOT / "docs" / "faults.md"
ABOUT = """# What breaks, and what callers see

Made by `python -m tests.chaos --write`; `make chaos` prints it. Every fault hits a fresh server on loopback under load:
four models, two of archives' code and two of ours, four callers that check every answer against its request's number,
its id and a reference. "Seconds" is the time from the fault to the last refusal of any model that was answered again.
"Nothing lost" is GET /models after the fault; "nothing wrong" is that no answer was another request's, another model's,
or given twice.
"""


def main() -> int:
    """Run both; return 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/faults.md")
    parser.add_argument(
        "--seconds", type=int, default=fuzz.SECONDS, help="seconds for each parser (default %(default)s)"
    )
    options = parser.parse_args()
    started = time.monotonic()
    found, parsers = fuzz.report(options.seconds)
    failed, table = faults.report()
    print(f"\n{parsers}\n\n{table}\n\n{time.monotonic() - started:.0f} s")
    if options.write:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        when = (
            f"{datetime.date.today()}, commit {commit.stdout.strip() or 'unknown'}, Python {platform.python_version()}"
        )
        body = f"{ABOUT}\n{when}.\n\n{table}\n\n## Parsers\n\nAtheris, {options.seconds} s each.\n\n{parsers}\n"
        PAGE.write_text(body)
    return int(found or failed)


if __name__ == "__main__":
    sys.exit(main())
