"""What a server is started with: the single model, and what lies in the folder of `serve --models`.

Archives of that folder are unpacked once, under the state folder, and again only when they have changed. What nobody
serves any more is removed there, unless another server with the same state folder may be at it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from pathlib import Path

from container import log
from container.archive import unpack
from container.errors import ServingError
from container.settings import BadSetting, Settings
from container.wire import messages as m

_log = log.get(__name__)

_SUFFIXES = (".tar.gz", ".tgz", ".tar")
#: What a name may not hold becomes a "-".
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")


def models(settings: Settings) -> list[m.Registered]:
    """Return what is to be loaded at start. Raises BadSetting for folders that are none or cannot be read.

    What cannot be a model is left out, with its reason in the log.
    """
    try:
        return _single(settings) + _many(settings)
    except OSError as error:
        raise BadSetting(f"{error.filename} cannot be read: {error.strerror}") from error


def _single(settings: Settings) -> list[m.Registered]:
    """Return the model of a single-model endpoint, if there is one."""
    single = settings.base_dir / "model"
    if settings.multi_model or not single.is_dir() or not any(single.iterdir()):
        return []
    return [m.Registered("model", str(_chosen(single, settings.triton_model)))]


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


def _many(settings: Settings) -> list[m.Registered]:
    """Return what lies in the folder of models, if one is named."""
    if settings.models_dir is None:
        return []
    if settings.door == "mms":
        raise BadSetting("--models (BERTH_MODELS) has no meaning at the mms door: Java lists only what it has loaded")
    if not settings.models_dir.is_dir():
        hint = "; name the folder that it lies in" if settings.models_dir.is_file() else ""
        raise BadSetting(f"--models (BERTH_MODELS): {str(settings.models_dir)!r} is not a folder{hint}")
    named = _named(settings.models_dir.absolute())
    archives = {name: path for name, path in named.items() if not path.is_dir()}
    homes = {name: home for name, path in archives.items() if (home := _home(name, path, settings)) is not None}
    if homes:
        _sweep(settings.state_dir / "unpacked", {home.name for home in homes.values()})
    found = []
    for name, path in named.items():
        if name not in archives:
            found.append(m.Registered(name, str(path)))
        elif name in homes and _unpacked(name, path, homes[name]):
            found.append(m.Registered(name, str(homes[name]), origin=_shown(path)))
    return found


def _named(folder: Path) -> dict[str, Path]:
    """Return name -> folder or archive of what may be a model; the rest is in the log."""
    named: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        shown, is_folder = _shown(path), path.is_dir()
        suffix = next((end for end in _SUFFIXES if path.name.endswith(end) and not is_folder), "")
        name = _NOT_IN_NAMES.sub("-", path.name.removesuffix(suffix))
        if path.name.startswith("."):
            continue
        if not is_folder and not suffix:
            _log.warning("%s is passed by: models are folders and files that end in %s", shown, ", ".join(_SUFFIXES))
        elif name in named:
            _log.error(
                "%s is not loaded: its name would be %s, as that of %s is; rename one", shown, name, _shown(named[name])
            )
        elif is_folder and shown != str(path):
            _log.error("model %s is not loaded: the name of its folder %s is no text; rename it", name, shown)
        else:
            named[name] = path
    return named


def _shown(path: Path) -> str:
    """Return ``path`` as it may be said: a file name on Linux may be bytes that are no text."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _home(name: str, archive: Path, settings: Settings) -> Path | None:
    """Return the folder for ``archive`` as it is now under the state folder; None if it is not there to be read."""
    try:
        stat = archive.stat()
    except OSError as error:  # a link to nothing
        _log.error("model %s is not loaded: %s: %s", name, _shown(archive), error.strerror)
        return None
    key = f"{archive} {stat.st_size} {stat.st_mtime_ns}"
    return settings.state_dir / "unpacked" / hashlib.sha256(os.fsencode(key)).hexdigest()[:24]


def _unpacked(name: str, archive: Path, home: Path) -> bool:
    """Unpack ``archive`` if it is not yet; return whether it is, with the reason in the log if not."""
    if home.is_dir():
        return True
    _log.info("unpacking %s as model %s", _shown(archive), name)
    try:
        unpack.unpack(archive, home, max_bytes=max(1 << 30, 200 * archive.stat().st_size))
    except (ServingError, OSError) as error:  # the latter: a state folder that cannot be written
        _log.error("model %s is not loaded: %s", name, str(error).replace(str(archive), _shown(archive)))
        return False
    return True


def _sweep(unpacked: Path, wanted: set[str]) -> None:
    """Remove what earlier servers had unpacked and this one does not want, unless another one runs here.

    The lock is held by each server for as long as it lives.
    """
    try:
        unpacked.mkdir(parents=True, exist_ok=True)
        lock = os.open(unpacked / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(lock, fcntl.LOCK_SH)
        return
    except OSError:  # the supervisor says that the state folder cannot be written
        return
    for left in unpacked.iterdir():
        if left.name not in wanted and left.is_dir():
            _log.info("removing what is not served any more from the state folder: %s", left.name)
            shutil.rmtree(left, ignore_errors=True)
    fcntl.flock(lock, fcntl.LOCK_SH)
