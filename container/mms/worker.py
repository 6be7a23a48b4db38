"""multi-model-server's own worker program, with two of its faults kept away from callers.

Java runs one server process a model, which forks a process for every connection (contract.md 3b). Beside it:
- every archive is the engine's: the handler that its manifest may name does not run here;
- a load that is refused for memory leaves no zombie. Java answers 507 and then unregisters the model; while it waits
  for the end of the server process it finds that it has interrupted itself, takes the model back in with no workers,
  and from then on says 409 to a load and 503 to an invoke. If that process has ended before, it does not wait.

Started by Java with ``-I``: what lies in an archive's folder is never imported.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from mms.arg_parser import ArgParser
from mms.model_service_worker import MXNetModelServiceWorker

from container.mms import service
from container.mms.service import Door

HANDLER = b"container.mms.service:handle"
_NO_ROOM = 507
#: How long Java takes to notice the end of its child, many times over.
_NOTICE_S = 0.1
_AFTER_FIRST_S = 1.0
#: Java has read the answer long before; then nothing is left to do for a refused worker.
_LINGER_S = 2.0


class Worker(MXNetModelServiceWorker):  # type: ignore[misc]  # multi-model-server has no types
    """The worker program for one model."""

    def load_model(self, load_model_request: dict[str, Any]) -> tuple[str, int]:
        """Return the text and the status that Java gets: 200, or 507; anything else raises."""
        load_model_request["handler"] = HANDLER
        text, status = super().load_model(load_model_request)
        if status == _NO_ROOM:
            _refused()
        return text, status


def _refused() -> None:
    """Make way for Java's clean-up before it hears of the refusal."""
    if multiprocessing.current_process().name != "Process-1":
        # Either the first one tells Java, and must be heard first, or the model was up before and shall stay
        # registered: Java tries again by itself.
        time.sleep(_AFTER_FIRST_S)
        raise RuntimeError("no room for this model at the moment")
    server = os.getppid()
    os.kill(server, signal.SIGKILL)
    while os.getppid() == server:
        time.sleep(0.001)
    time.sleep(_NOTICE_S)
    # After the answer it would wait for Java to open its output, which never happens.
    signal.signal(signal.SIGALRM, _leave)
    signal.setitimer(signal.ITIMER_REAL, _LINGER_S)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> None:
    """Serve one model until Java ends this process; run whatever else Java has for an interpreter as it is."""
    if Path(sys.argv[1]).name != "model_service_worker.py":  # its collector of host metrics
        program = sys.argv[1]
        sys.argv = sys.argv[1:]
        runpy.run_path(program, run_name="__main__")
        return
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    options = ArgParser.model_service_worker_args().parse_args(sys.argv[2:])  # [1] is the program Java meant to run
    service.door = Door.read(Path(options.tmp_dir))
    known = {"handler": HANDLER, "modelPath": options.model_path.encode(), "modelName": options.model_name.encode()}
    worker = Worker(
        options.sock_type, options.sock_name, options.host, options.port, known, options.preload_model, options.tmp_dir
    )
    try:
        worker.run_server()
    finally:
        if options.sock_type == "unix":
            Path(options.sock_name).unlink(missing_ok=True)
