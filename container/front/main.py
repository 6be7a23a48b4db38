"""The front's process: gunicorn's master, tied to the supervisor's life."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gunicorn.app.wsgiapp import WSGIApplication

from container.lifeline import die_with_parent


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m container.front.main``; returns when gunicorn ends."""
    parser = argparse.ArgumentParser(description="The HTTP server; started by `berth serve`.")
    parser.add_argument("--parent", type=int, required=True, help="pid of the supervisor, with which this process ends")
    die_with_parent(parser.parse_args(argv).parent)
    sys.argv[1:] = ["-c", "python:container.front.gunicorn_conf"]
    WSGIApplication("%(prog)s -c CONFIG", prog="berth front").run()


if __name__ == "__main__":
    main()
