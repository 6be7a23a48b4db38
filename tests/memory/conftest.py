"""Folders that lie on a disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A folder beside the tests: where /tmp lies in memory, no page cache is to be seen there."""
    root = Path(__file__).parents[2] / ".pytest_cache"
    root.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        yield Path(folder)
