"""The ``berth`` command: one file a verb, each with ``add_arguments`` and ``run``; its docstring is its help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from container import __version__
from container.settings import BadSetting

#: verb -> module; a verb that is named is imported alone, so that a server does not carry what others need.
VERBS = {
    "serve": "container.cli.serve",
    "check": "container.cli.check",
    "pack": "container.cli.pack",
    "deploy": "container.cli.deploy",
    "invoke": "container.cli.invoke",
    "endpoint": "container.cli.endpoint",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``berth VERB ...``; return the exit status: 0, 1 failed, 2 wrong usage or settings."""
    parser = argparse.ArgumentParser(prog="berth", description="Many models behind one endpoint.")
    parser.add_argument("--version", action="version", version=f"berth {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    wanted = list(sys.argv[1:] if argv is None else argv)
    named = next((word for word in wanted if not word.startswith("-")), "")
    for verb in [named] if named in VERBS else VERBS:
        module = import_module(VERBS[verb])
        about, _, examples = (module.__doc__ or "").partition("\n\n")
        added = verbs.add_parser(
            verb, help=about, description=about, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(added)
        added.set_defaults(run=module.run)
    options = parser.parse_args(wanted)
    try:
        status: int = options.run(options)
    except BadSetting as error:
        print(f"berth: {error}", file=sys.stderr)
        return 2
    return status
