"""Writes requirements/*.lock: what the image is built from, with hashes, for Linux and every Python we run on.

    python .ci/lock.py            versions that are locked stay, as far as pyproject.toml allows
    python .ci/lock.py --upgrade  the newest of everything

core.lock is pyproject's dependencies and what torch itself needs, without torch: its build is chosen by the machine
(Dockerfile, TORCH_INDEX_URL). EXTRA.lock is what that extra adds to core.lock. Needs uv (`pip install uv`).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "requirements"
#: Extras that are never in the image.
OUTSIDE = {"aws", "dev"}
#: What torch asks for (its METADATA), so that none of it comes unhashed with the wheel.
OF_TORCH = [
    "filelock",
    "fsspec>=0.8.5",
    "jinja2",
    "networkx>=2.5.1",
    "setuptools>=77.0.3,<82",
    "sympy>=1.13.3",
    "typing-extensions>=4.10",
]
HEAD = "# Made by `make lock` from pyproject.toml; torch is outside (Dockerfile).\n"


def main() -> int:
    """Write the locks; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    options = parser.parse_args()
    uv = shutil.which("uv")
    if uv is None:
        print("make lock: no uv here; `pip install uv` brings it", file=sys.stderr)
        return 1
    FOLDER.mkdir(exist_ok=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = [line for line in project["dependencies"] if name_of(line) != "torch"] + OF_TORCH
    locked = write(uv, "core", core, options.upgrade, set())
    for extra, lines in project["optional-dependencies"].items():
        if extra not in OUTSIDE:
            write(uv, extra, core + lines, options.upgrade, locked, "--constraint", str(FOLDER / "core.lock"))
    return 0


def name_of(line: str) -> str:
    """Return the normalised name of a requirement line."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]).lower()


def write(uv: str, lock: str, lines: list[str], upgrade: bool, without: set[str], *arguments: str) -> set[str]:
    """Resolve ``lines`` into FOLDER/``lock``.lock, less what ``without`` names; return the names it has."""
    target = FOLDER / f"{lock}.lock"
    command = [uv, "pip", "compile", "-", "--universal", "--python-version", "3.11", "--generate-hashes", "--no-config"]
    command += ["--no-annotate", "--no-header", "--quiet", "--default-index", "https://pypi.org/simple", *arguments]
    if upgrade:
        command.append("--upgrade")
    elif target.exists():
        command += ["--output-file", str(target)]  # uv keeps the versions of a file that is there
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"make lock: {lock}: {done.stderr.strip()}")
    text = done.stdout if done.stdout.strip() else target.read_text()
    blocks = re.findall(r"^[A-Za-z0-9].*?(?=^[A-Za-z0-9#]|\Z)", text, re.MULTILINE | re.DOTALL)
    kept = [block for block in blocks if name_of(block) not in without]
    target.write_text(HEAD + "".join(kept))
    return {name_of(block) for block in kept}


if __name__ == "__main__":
    sys.exit(main())
