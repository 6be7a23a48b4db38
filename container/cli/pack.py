"""Pack a model folder as the .tar.gz that SageMaker and berth load; the same files give the same bytes.

Examples:
  berth pack ./my-model                        writes my-model.tar.gz here
  berth pack ./my-model -o build/cats.tar.gz

The folder is loaded and asked first, as `berth check` does, and what would not serve is not packed (--no-check packs it
all the same). Left out: .ipynb_checkpoints, __pycache__, .git and the like. Exit status: 0 packed, 1 refused, 2 wrong
usage.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from container.archive.describe import describe
from container.archive.pack import pack
from container.cli import check, rehearsal
from container.cli.terminal import GREEN, Progress, amount, paint
from container.engine.report import Request
from container.errors import ServingError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``berth pack``."""
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="the model: what is in it comes to the archive's root")
    add("-o", "--out", type=Path, metavar="FILE", help="the archive to write (default: DIR.tar.gz in this folder)")
    add("--no-check", action="store_true", help="do not load it first; only its layout is looked at")
    add("--load-limit-s", type=float, default=300.0, metavar="S", help="how long it may load (default %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Check and pack; return the exit status."""
    folder: Path = options.folder
    if not folder.is_dir():
        print(f"berth pack: {folder} is not a folder", file=sys.stderr)
        return 2
    out: Path = options.out or Path(f"{folder.absolute().name}.tar.gz")
    if not out.name.endswith((".tar.gz", ".tgz")):
        print(f"berth pack: {out} does not end in .tar.gz, which is all that SageMaker loads", file=sys.stderr)
        return 2
    try:
        describe(folder)
        if not options.no_check:
            with rehearsal.Rehearsal() as trial:
                tried = check.tried_out(trial, folder, Request("", "", limit_s=options.load_limit_s))
            if tried.report.fault is not None:
                check.show(folder, tried, verbose=False)
                print("not packed; mend it, or pack it all the same with --no-check", file=sys.stderr)
                return 1
        with Progress() as progress:
            progress.phase(f"packing {out.name}")
            digest = pack(folder, out, progress.bytes)
    except ServingError as error:
        print(f"berth pack: {error}", file=sys.stderr)
        return 1
    print(f"{paint('packed', GREEN)}  {out}  {amount(out.stat().st_size)}  sha256 {digest}")
    return 0
