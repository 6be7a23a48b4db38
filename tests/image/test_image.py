"""What lies in the image: labels, size, no compiler, no cache, the locked versions."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from packaging.requirements import Requirement

from container import __version__
from tests.image.container import IMAGE, docker
from tests.server import ROOT

#: Bytes of the CPU image without the mms door; torch alone is 560 MB of them.
LARGEST = 1.5e9


def shell(script: str) -> str:
    return docker("run", "--rm", "--network=none", "--entrypoint", "/bin/sh", IMAGE, "-c", script)


def test_the_labels_that_create_model_asks_for_and_where_it_comes_from(image: dict[str, Any]) -> None:
    labels = image["Config"]["Labels"]
    assert labels["com.amazonaws.sagemaker.capabilities.multi-models"] == "true"
    assert labels["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    assert labels["org.opencontainers.image.version"] == __version__
    assert re.fullmatch(r"[0-9a-f]{12}|unknown", labels["org.opencontainers.image.revision"])


def test_the_entrypoint_takes_serve_and_gets_the_signals_itself(image: dict[str, Any]) -> None:
    config = image["Config"]
    assert config["Entrypoint"] == ["/opt/berth/bin/berth"]
    assert config["Cmd"] == ["serve"]
    assert config["User"] in {"", "root"}
    assert "BERTH_HOST=0.0.0.0" in config["Env"]
    assert image["Architecture"] == "amd64"
    assert docker("run", "--rm", "--network=none", IMAGE, "--version") == f"berth {__version__}"


def test_no_compiler_no_java_no_cache_and_nothing_of_the_build_is_left(
    image: dict[str, Any], figures: dict[str, str]
) -> None:
    assert shell("for each in gcc cc g++ c++ clang make java git; do command -v $each; done; true") == ""
    left = "/root/.cache /extra /requirements /etc/pip.conf /opt/berth/app/tests /var/lib/apt/lists/*Packages /tmp/*"
    assert shell(f"ls -d {left} 2>/dev/null; true") == ""
    assert image["Size"] < LARGEST
    parts = shell("cd /opt/berth/lib/python3*/site-packages && du -sm -- */ | sort -rn | head -6 | tr '\\t\\n' '  '")
    figures["image"] = f"{image['Size'] / 1e6:.0f} MB; of it {parts}(MiB)"


def test_bytecode_is_there_for_everything_that_starts_a_server() -> None:
    script = """
import sys, importlib.util
for name in ("container.supervise", "container.engine.engine", "handlers.embeddings", "torch", "transformers", "numpy"):
    cached = importlib.util.find_spec(name).cached
    print(name, open(cached, "rb").read(1) != b"")
"""
    said = docker("run", "--rm", "--network=none", "--entrypoint", "/opt/berth/bin/python", IMAGE, "-c", script)
    assert [line.split()[1] for line in said.splitlines()] == ["True"] * 6


@pytest.mark.parametrize("python", ["3.11"])
def test_what_is_installed_is_what_is_locked(image: dict[str, Any], python: str) -> None:
    script = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    said = docker("run", "--rm", "--network=none", "--entrypoint", "/opt/berth/bin/python", IMAGE, "-c", script)
    installed = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in json.loads(said).items()}
    assert installed.pop("torch").split("+")[0] == (ROOT / "requirements/torch.txt").read_text().strip().split("==")[1]
    installed.pop("pip")
    locked = {}
    extras = image["Config"]["Labels"]["berth.extras"].split()
    text = "".join((ROOT / "requirements" / f"{name}.lock").read_text() for name in ["core", *extras])
    for line in re.findall(r"^[a-z0-9].*?(?= \\$)", text, re.MULTILINE):
        pin = Requirement(line)
        facts = {
            "python_version": python,
            "python_full_version": f"{python}.2",
            "sys_platform": "linux",
            "platform_machine": "x86_64",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
        }
        if pin.marker is None or pin.marker.evaluate(facts):
            locked[pin.name] = str(pin.specifier).removeprefix("==")
    assert installed == locked
