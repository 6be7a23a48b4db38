"""Environments for archives with ``code/requirements.txt``: built once per content, kept, swept by size.

The key is a hash of the requirements, the wheels the archive brings, the Python and the platform, so that two archives
that ask for the same share one, and two that conflict never meet. What the archive's wheels can satisfy is installed
without asking any index. The server's own packages lie beneath, through a ``.pth`` file: torch is not installed again,
and a version that the archive pins shadows ours in its process alone.
pip, not uv: users' indexes, proxies and credentials are configured for pip.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from container import log
from container.errors import LoadFailed

_log = log.get(__name__)

#: A build must leave time for the load itself within the platform's 360 s.
BUILD_S = 300.0
_DONE = ".complete"
_TAIL_CHARACTERS = 1200
#: A line that names what lies beside the file: an option with a path, or a path.
_LOCAL = re.compile(
    r"^\s*(-r|-c|-e|--requirement|--constraint|--editable|\.{1,2}/|\.\s*$|file:|\S+ @ file:)", re.MULTILINE
)
#: What stands before a name that the archive's author knows.
_SERVER_PATH = re.compile(r"/\S*/(?=code/requirements\.txt)")


def ensure(requirements: Path, envs: Path, limit_bytes: int) -> str:
    """Return the python of the environment for ``requirements``, building it if it is not there.

    Blocks; several processes may ask at once. Raises LoadFailed with pip's own last words, paths taken out.
    """
    envs.mkdir(parents=True, exist_ok=True)
    env = envs / key_of(requirements)
    python = env / "bin" / "python"
    with _locked(env.with_suffix(".lock")):
        if (env / _DONE).exists():
            (env / _DONE).touch()  # last used, for the sweep
            return str(python)
        sweep(envs, limit_bytes, keep=env)
        shutil.rmtree(env, ignore_errors=True)
        _log.info("building an environment for %s", requirements.parent.parent.name)
        try:
            _build(env, requirements)
        except BaseException:
            shutil.rmtree(env, ignore_errors=True)
            raise
        (env / _DONE).touch()
    return str(python)


def key_of(requirements: Path) -> str:
    """Return the name of the environment that ``requirements`` asks for."""
    digest = hashlib.sha256()
    digest.update(f"{sys.version} {platform.platform()} {sys.prefix}\n".encode())
    digest.update(requirements.read_bytes())
    beside = _wheels(requirements)
    if _LOCAL.search(requirements.read_text("utf-8", "replace")):  # other files, folders with a setup.py
        files = (path for path in requirements.parent.rglob("*") if path.is_file() and path.suffix != ".pyc")
        beside += sorted(path for path in files if path not in beside)
    for wheel in beside:
        digest.update(f"{wheel.name} {hashlib.sha256(wheel.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:24]


def sweep(envs: Path, limit_bytes: int, keep: Path) -> None:
    """Remove the environments that were used longest ago until all of them take at most ``limit_bytes``."""
    marks = sorted(envs.glob(f"*/{_DONE}"), key=lambda mark: mark.stat().st_mtime)
    sizes = {mark.parent: _size(mark.parent) for mark in marks}
    total = sum(sizes.values())
    for env, size in sizes.items():
        if total <= limit_bytes:
            return
        if env != keep:
            _log.info("sweeping the environment %s, %d bytes", env.name, size)
            shutil.rmtree(env, ignore_errors=True)
            total -= size


def _build(env: Path, requirements: Path) -> None:
    _run([sys.executable, "-m", "venv", "--without-pip", str(env)], "python -m venv")
    site = Path(sysconfig.get_path("purelib", vars={"base": str(env), "platbase": str(env)}))
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site / "_berth_beneath.pth").write_text("\n".join(ours) + "\n")
    pip = [str(env / "bin" / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    found = {str(wheel.parent) for wheel in _wheels(requirements)}
    links = [option for folder in sorted(found) for option in ("--find-links", folder)]
    asked = ["--quiet", *links, "-r", str(requirements)]
    home = requirements.parent  # where "./wheels/mine.whl" in the file is looked for
    if found:
        try:
            _run([*pip, "--no-index", *asked], "pip install --no-index", home)
        except LoadFailed:
            _log.info("the archive's wheels are not all that it asks for; pip's index is asked, too")
        else:
            return
    _run([*pip, *asked], "pip install -r code/requirements.txt", home)


def _run(command: list[str], label: str, home: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_S, check=False, stdin=subprocess.DEVNULL, cwd=home
        )
    except subprocess.TimeoutExpired:
        raise LoadFailed(
            f"{label} did not end within {BUILD_S:.0f} s; bring the wheels in the archive (code/wheels/)"
        ) from None
    if done.returncode:
        _log.error("%s failed:\n%s%s", label, done.stdout, done.stderr)
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} in the state folder for code/requirements.txt")
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        words = " ".join(lines)[-_TAIL_CHARACTERS:]
        if home is not None:
            words = words.replace(f"{home}/", "code/")
        words = _SERVER_PATH.sub("", words).replace(str(Path.home()), "~")
        offline = "Could not" in words or "No matching" in words
        hint = "; without a network, bring the wheels in code/wheels/" if offline else ""
        raise LoadFailed(f"{label} failed: {words}{hint}")


def _wheels(requirements: Path) -> list[Path]:
    """Return the wheels that the archive brings, beside its code or at its root."""
    home = requirements.parent
    return sorted(wheel for folder in (home / "wheels", home.parent / "wheels", home) for wheel in folder.glob("*.whl"))


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
