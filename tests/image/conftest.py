"""The image that is tested, and one container of it for each module. Without an engine these tests fail, not skip."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.image.container import IMAGE, Container, contained, docker
from tests.server import ROOT

#: What `make test-image` reports beside passed and failed.
FIGURES: dict[str, str] = {}
LONGEST = ["test_mms", "test_push", "test_build", "test_hurry", "test_life"]


@pytest.fixture(scope="session")
def image() -> dict[str, Any]:
    """What docker knows of the image."""
    inspected: list[dict[str, Any]] = json.loads(docker("image", "inspect", IMAGE))
    return inspected[0]


@pytest.fixture(scope="session")
def mms_image() -> str:
    """The image with multi-model-server and Java and no other extra, built as a user builds it."""
    environ = os.environ | {"IMAGE": "berth:mms", "EXTRAS": "mms"}
    with (Path(tempfile.gettempdir()) / "berth-mms-image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two workers the second finds every layer made
        done = subprocess.run(["sh", ".ci/image.sh"], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    took = done.stdout.rpartition("built in ")[2].strip()
    if int(took.split()[0]) > 5:  # what finds its layers tells nothing
        FIGURES["EXTRAS=mms is built in"] = took
    return environ["IMAGE"]


@pytest.fixture(scope="session")
def figures() -> dict[str, str]:
    return FIGURES


@pytest.fixture(scope="module")
def server(image: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """The fixture of tests/conftest.py, with a container in the place of the local server."""
    with contained(tmp_path_factory.mktemp("base")) as started:
        yield started


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A folder that any user may look into, as the platform's is."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path(folder.anchor):
            folder.chmod(folder.stat().st_mode | 0o055)
        if "pytest-of" in folder.name:
            break
    return tmp_path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is here: `make test` leaves it to `make test-image`. The longest come first, for two workers."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.image)
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand a worker's figures over to whoever prints."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["figures"] = FIGURES


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take them over."""
    FIGURES.update(getattr(node, "workeroutput", {}).get("figures", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was measured."""
    for name, value in FIGURES.items():
        terminalreporter.write_line(f"{name}: {value}")
