"""The front's process: gunicorn's master, tied to the supervisor's life."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.arbiter import Arbiter

from container import log
from container.lifeline import die_with_parent

_log = log.get(__name__)


class Master(Arbiter):  # type: ignore[misc]
    """gunicorn's master, which lives on where the system has no process for a worker, and tries again each second."""

    def spawn_worker(self) -> int:
        """Return the pid of a new worker, 0 if there is none to be had (its own would end, and all workers with it)."""
        try:
            pid: int = super().spawn_worker()
        except OSError as error:  # of the fork, or of the worker's heartbeat file; what fails in a worker ends that
            _log.error("no process for a front worker (%s); trying again in a second", error.strerror or error)
            return 0
        return pid


class Application(WSGIApplication):  # type: ignore[misc]
    """The program ``gunicorn`` with our Master."""

    def run(self) -> None:
        """Serve; returns never, the master exits."""
        Master(self).run()


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m container.front.main``; returns when gunicorn ends."""
    parser = argparse.ArgumentParser(description="The HTTP server; started by `berth serve`.")
    parser.add_argument("--parent", type=int, required=True, help="pid of the supervisor, with which this process ends")
    die_with_parent(parser.parse_args(argv).parent)
    sys.argv[1:] = ["-c", "python:container.front.gunicorn_conf"]
    Application("%(prog)s -c CONFIG", prog="berth front").run()


if __name__ == "__main__":
    main()
