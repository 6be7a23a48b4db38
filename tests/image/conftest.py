"""The image that is tested, and one container of it for each module. Without an engine these tests fail, not skip."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.image.container import IMAGE, Container, contained, docker

#: What `make test-image` reports beside passed and failed.
FIGURES: dict[str, str] = {}


@pytest.fixture(scope="session")
def image() -> dict[str, Any]:
    """What docker knows of the image."""
    inspected: list[dict[str, Any]] = json.loads(docker("image", "inspect", IMAGE))
    return inspected[0]


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
    """Mark what is here: `make test` leaves it to `make test-image`."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.image)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was measured."""
    for name, value in FIGURES.items():
        terminalreporter.write_line(f"{name}: {value}")
