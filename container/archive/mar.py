"""What the files of a multi-model-server or TorchServe archive say: its handler, its batches, its time limit.

    MAR-INF/MANIFEST.json    {"model": {"handler": "service.py:handle", "serializedFile": "model.pt", ...}}
    model-config.yaml        batchSize: 4, maxBatchDelay: 50, responseTimeout: 300, and whatever the handler wants

Pure: the caller hands in the bytes of files. Does not cover: minWorkers, maxWorkers, deviceType and useVenv, which mean
a process a worker; here one object serves a model, and a requirements.txt gives it a process of its own.
"""

from __future__ import annotations

from typing import Any

import msgspec

from container.archive.manifest import Batch, Berth
from container.errors import BadArchive

MANIFEST = "MAR-INF/MANIFEST.json"
CONFIG = "model-config.yaml"
#: The most that berth.json's timeout_s may be, in seconds.
_MAX_TIMEOUT_S = 3600


def read_manifest(raw: bytes) -> dict[str, Any]:
    """Return MANIFEST.json. Raises BadArchive."""
    try:
        manifest = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadArchive(f"{MANIFEST} is not JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise BadArchive(f"{MANIFEST} must hold one JSON object")
    return manifest


def model_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest's ``model`` object, {} if it has none."""
    model = manifest.get("model")
    return model if isinstance(model, dict) else {}


def config_name(manifest: dict[str, Any]) -> str:
    """Return the name of the archive's configuration file, which need not be there."""
    name = model_of(manifest).get("configFile")
    return name if isinstance(name, str) and name else CONFIG


def read_config(raw: bytes, name: str = CONFIG) -> dict[str, Any]:
    """Return model-config.yaml. Raises BadArchive."""
    try:
        config = msgspec.yaml.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadArchive(f"{name} is not YAML: {error}") from error
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise BadArchive(f"{name} must hold names with values, like `batchSize: 4`")
    return config


def settings_of(berth: Berth, manifest: dict[str, Any], config: dict[str, Any]) -> Berth:
    """Return ``berth`` with what the archive's own files say of batches and time, where berth.json does not.

    The configuration wins over the manifest. Without either a batch is one request: handlers of this kind may read
    ``data[0]`` only. Raises BadArchive for a number that is not one.
    """
    told = {**model_of(manifest), **config}
    batch = berth.batch
    if batch == Batch():
        batch = Batch(_number(told, "batchSize", 1, 1), _number(told, "maxBatchDelay", 0, 0))
    timeout_s = berth.timeout_s
    if timeout_s == Berth().timeout_s and "responseTimeout" in told:
        timeout_s = float(min(_number(told, "responseTimeout", 1, 1), _MAX_TIMEOUT_S))
    return msgspec.structs.replace(berth, batch=batch, timeout_s=timeout_s)


def _number(told: dict[str, Any], key: str, default: int, least: int) -> int:
    value = told.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BadArchive(f"{key} of the archive is {value!r}; it must be a whole number from {least} on")
    return value
