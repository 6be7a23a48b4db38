"""Serve models over HTTP: SageMaker's paths, on 127.0.0.1:8080 unless told otherwise.

Examples:
  berth serve                              models are loaded by POST /models
  berth serve --models ./archives          every folder and .tar.gz in there is loaded at start, named as the file
  SAGEMAKER_BIND_TO_PORT=9000 berth serve  another port; all settings are in the README's table
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path

from container import log, supervise
from container.archive import unpack
from container.errors import ServingError
from container.settings import CONTROLS, BadSetting, Settings
from container.wire import messages as m

_SUFFIXES = (".tar.gz", ".tgz", ".tar")


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
        log.get(__name__).warning("controls of secure mode that this build does not know: %s", sorted(unknown))
    try:
        first = _first_models(settings)
    except ServingError as error:
        print(f"berth serve: {error}", file=sys.stderr)
        return 1
    return supervise.serve(settings, first)


def _first_models(settings: Settings) -> list[m.Registered]:
    """Return what is to be loaded at start: the single model, and the folder of models."""
    first: list[m.Registered] = []
    single = settings.base_dir / "model"
    if not settings.multi_model and single.is_dir() and any(single.iterdir()):
        first.append(m.Registered("model", str(_chosen(single, settings.triton_model))))
    if settings.models_dir is not None and settings.door == "mms":
        raise BadSetting("--models (BERTH_MODELS) has no meaning at the mms door: Java lists only what it has loaded")
    if settings.models_dir is not None:
        if not settings.models_dir.is_dir():
            raise BadSetting(f"BERTH_MODELS={str(settings.models_dir)!r} is not a folder")
        for path in sorted(settings.models_dir.iterdir()):
            name = re.sub(r"[^A-Za-z0-9._-]", "-", path.name)
            if path.is_dir() and not path.name.startswith("."):
                first.append(m.Registered(name, str(path.absolute())))
            elif path.name.endswith(_SUFFIXES):
                plain = name[: -len(next(s for s in _SUFFIXES if name.endswith(s)))]
                first += _packed_model(plain, path, settings)
    return first


def _packed_model(name: str, archive: Path, settings: Settings) -> list[m.Registered]:
    """Return the model in ``archive``, nothing with the reason in the log if it cannot be unpacked."""
    try:
        return [m.Registered(name, str(_unpacked(archive, settings)))]
    except (ServingError, OSError) as error:  # the latter: a link to nothing, a file that may not be read
        log.get(__name__).error("model %s is not loaded: %s", name, error)
        return []


def _chosen(single: Path, name: str) -> Path:
    """Return the folder of the single model: ``name`` in a Triton repository, else ``single`` itself."""
    if not name or (single / "config.pbtxt").is_file():
        return single
    there = sorted(path.parent.name for path in single.glob("*/config.pbtxt"))
    if there and name not in there:
        raise BadSetting(
            f"SAGEMAKER_TRITON_DEFAULT_MODEL_NAME={name!r} is no model in {single}; there are: {', '.join(there)}"
        )
    return single / name if there else single


def _unpacked(archive: Path, settings: Settings) -> Path:
    """Return the folder of ``archive`` under the state folder; unpacked only if it has changed since last time."""
    stat = archive.stat()
    key = f"{archive.absolute()} {stat.st_size} {stat.st_mtime_ns}"
    folder = settings.state_dir / "unpacked" / hashlib.sha256(key.encode()).hexdigest()[:24]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        log.get(__name__).info("unpacking %s", archive.name)
        unpack.unpack(archive, folder, max_bytes=max(1 << 30, 200 * stat.st_size))
    return folder
