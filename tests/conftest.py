"""What every test can rely on: no hub, few threads, an environment that is put back, processes that are gone."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tests.server import Server, running

settings.register_profile("berth", deadline=None)  # a busy machine is no failure
settings.load_profile("berth")

#: multi-model-server's toolkit refuses a second server on the machine, so these never run side by side.
ONE_AT_A_TIME = ("tests/doors/", "tests/rows/test_row_b.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests stay together, for the server they share; two files run at a time."""
    for item in items:
        path = item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group("mms" if path.startswith(ONE_AT_A_TIME) else path))


def pytest_collection_finish() -> None:
    """What is imported by now stays: a pass of the garbage collector over torch takes longer than most tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def environment_is_put_back() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of a module; each uses model names of its own."""
    base: Path = tmp_path_factory.mktemp("base")
    with running(base) as started:
        yield started
