"""The same server behind either door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.doors.differences import DIFFERENCES
from tests.server import Server, running


@pytest.fixture(scope="module", params=["http", "mms"])
def door(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def server(door: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of a module and a door; each test uses model names of its own."""
    with running(tmp_path_factory.mktemp(door), BERTH_DOOR=door) as started:
        yield started


@pytest.fixture
def expected(door: str) -> Callable[[str], Any]:
    """What this door answers where the two differ."""
    return lambda what: getattr(DIFFERENCES[what], door)
