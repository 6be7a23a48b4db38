"""``python -m bench``: run rows, print what was found, keep it under bench/results."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from pathlib import Path

from bench import machine
from bench.peers.server import PeerFailed
from bench.report import RESULTS, Options, Report
from bench.rows import ROWS

_EXAMPLES = """\
examples:
  python -m bench                          every row, five pairs each (about an hour)
  python -m bench --quick                  every row, two short rounds: to see that all works, not to quote
  python -m bench echo embed               two rows
  python -m bench memory --peers mms       one contender only
  python -m bench echo --dry               print, keep nothing

Every figure is taken beside its peer, in alternation; see bench/README.md for the method.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure berth beside its neighbours and the machine's own limit.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="row", help=f"which rows: {', '.join(ROWS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="two rounds of 1.5 s: not for quoting")
    parser.add_argument("--rounds", type=int, help="pairs a ratio (default 5)")
    parser.add_argument("--seconds", type=float, help="counted seconds a sample (default 4)")
    parser.add_argument("--peers", default="berth,mms,echo,bare", help="who takes part (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: bench/results)")
    parser.add_argument("--dry", action="store_true", help="write no files")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run what ``argv`` asks for; return 0, 1 when a row failed, 2 for wrong arguments."""
    arguments = sys.argv[1:] if argv is None else argv
    asked = _parser().parse_args(arguments)
    unknown = [row for row in asked.rows if row not in ROWS]
    if unknown:
        print(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    options = Options(
        rounds=asked.rounds or (2 if asked.quick else 5),
        seconds=asked.seconds or (1.5 if asked.quick else 4.0),
        quick=asked.quick,
        peers=frozenset(asked.peers.split(",")),
    )
    command = shlex.join(["python", "-m", "bench", *arguments])
    failed = False
    for row in asked.rows or ROWS:
        before = machine.look()
        print(f"... {row}, {options.rounds} rounds", file=sys.stderr, flush=True)
        try:
            report: Report = importlib.import_module(f"bench.rows.{row}").run(options)
        except PeerFailed as error:
            print(f"{row}: {error}", file=sys.stderr)
            failed = True
            continue
        print(report.text(before, command))
        if not asked.dry:
            print(f"kept: {report.keep(before, command, asked.out)}\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
