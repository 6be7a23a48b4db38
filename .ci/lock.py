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
import tempfile
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
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name not in OUTSIDE}
    core = [line for line in project["dependencies"] if name_of(line) != "torch"] + OF_TORCH
    wanted = {"core": core} | {extra: core + lines for extra, lines in extras.items()}
    former = "" if options.upgrade else "".join(lock.read_text() for lock in sorted(FOLDER.glob("*.lock")))
    # All together first, so that a package has one version in whatever locks name it.
    everything = resolve(uv, [line for lines in wanted.values() for line in lines], former)
    locked: set[str] = set()
    for name, lines in wanted.items():
        blocks = blocks_of(resolve(uv, lines, everything, pinned=True))
        kept = [block for block in blocks if name == "core" or name_of(block) not in locked]
        (FOLDER / f"{name}.lock").write_text(HEAD + "".join(kept))
        if name == "core":
            locked = {name_of(block) for block in kept}
    return 0


def name_of(line: str) -> str:
    """Return the normalised name of a requirement line."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]).lower()


def blocks_of(lock: str) -> list[str]:
    """Return the requirements of a lock, each with its hashes."""
    return re.findall(r"^[A-Za-z0-9].*?(?=^[A-Za-z0-9#]|\Z)", lock, re.MULTILINE | re.DOTALL)


def resolve(uv: str, lines: list[str], former: str, *, pinned: bool = False) -> str:
    """Resolve ``lines`` into the text of a lock. former: a lock whose versions are preferred, or (pinned) the law."""
    with tempfile.TemporaryDirectory() as folder:
        lock, law = Path(folder) / "out.lock", Path(folder) / "law.lock"
        lock.write_text(former)  # uv keeps the versions of a file that is there
        law.write_text(former)
        command = [uv, "pip", "compile", "-", "--universal", "--python-version", "3.11", "--generate-hashes"]
        command += ["--no-config", "--no-annotate", "--no-header", "--quiet", "--output-file", str(lock)]
        if pinned:
            command += ["--constraint", str(law)]
        done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"make lock: {done.stderr.strip()}")
        return lock.read_text()


if __name__ == "__main__":
    sys.exit(main())
