"""Serve models over HTTP: SageMaker's paths, on 127.0.0.1:8080 unless told otherwise.

Examples:
  berth serve                              models are loaded by POST /models
  berth serve --models ./archives          every folder and .tar.gz in there is loaded at start, named as the file
  SAGEMAKER_BIND_TO_PORT=9000 berth serve  another port; all settings are in the README's table
"""

from __future__ import annotations

import argparse
from pathlib import Path

from container import log, supervise
from container.cli import first
from container.settings import CONTROLS, Settings

_log = log.get(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``berth serve``."""
    parser.add_argument("--models", type=Path, metavar="DIR", help="folder of models to load at start (BERTH_MODELS)")
    parser.add_argument("--port", type=int, help="port to listen on (SAGEMAKER_BIND_TO_PORT)")
    parser.add_argument("--host", help="address to listen on (BERTH_HOST)")
    parser.add_argument("--door", choices=["http", "mms"], help="mms: multi-model-server's Java front (BERTH_DOOR)")


def run(options: argparse.Namespace) -> int:
    """Serve until stopped; return the exit status."""
    changes = {}
    if options.models is not None:
        changes["BERTH_MODELS"] = str(options.models.absolute())
    if options.port is not None:
        changes["SAGEMAKER_BIND_TO_PORT"] = str(options.port)
    if options.host is not None:
        changes["BERTH_HOST"] = options.host
    if options.door is not None:
        changes["BERTH_DOOR"] = options.door
    settings = Settings.of_process(**changes)
    log.configure("supervisor", settings.log_level)
    if settings.secure_mode and (unknown := settings.security_controls.difference(CONTROLS)):
        _log.warning("controls of secure mode that this build does not know: %s", sorted(unknown))
    return supervise.serve(settings, first.models(settings))
