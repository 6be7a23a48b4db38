"""Refusals for memory by a container with the second door, word for word as in tests/doors: 507, unload, again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from tests.doors import test_memory
from tests.image.container import Container, contained
from tests.makers import tiny_bert

pytestmark = pytest.mark.timeout(900)

#: Those that ask this server; the table of errors is gone through without the image.
globals().update(
    {
        name: test
        for name, test in vars(test_memory).items()
        if name.startswith("test_") and "server" in inspect.signature(test).parameters
    }
)


@pytest.fixture(scope="module")
def door() -> str:
    """The door that the borrowed tests ask for."""
    return "mms"


@pytest.fixture(scope="module")
def server(mms_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """Room for two of the tiny models, and nobody sinks: the platform has to choose."""
    base = tmp_path_factory.mktemp("mms")
    size = (tiny_bert(base / "scale") / "model.safetensors").stat().st_size
    limit = {"BERTH_MEMORY_LIMIT": str(int(size * 2.5)), "BERTH_EVICTION": "platform"}
    with contained(base, image=mms_image, BERTH_DOOR="mms", **limit) as started:
        yield started
