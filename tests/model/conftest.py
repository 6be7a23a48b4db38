"""Archives for the tests of this folder, and a check that none leaves anything behind."""

import os
import sys
from pathlib import Path

import pytest
from archives_at_hand import ARCHIVES, script

from container.archive.manifest import Manifest
from container.handler import Context
from container.model import guard, imports, opening


@pytest.fixture
def opened():
    """Open an archive of tests/archives by name, or a Manifest; closed at the end."""
    models = []

    def open_one(what, name="model", device="cpu", **more):
        manifest = what if isinstance(what, Manifest) else script(what, **more)
        models.append(opening.open_model(manifest, Context(name, device)))
        return models[-1]

    yield open_one
    for model in models:
        model.close()


@pytest.fixture
def write_archive(tmp_path):
    """Write an archive of files given as text; returns its Manifest."""

    def write(files, name="archive", **more):
        for path, text in files.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return script(name, tmp_path, **more)

    return write


@pytest.fixture
def baseline():
    """What a host child does before any author's code runs."""
    before = dict(os.environ), list(sys.path), Path.cwd()
    guard.take_baseline()
    yield
    guard.drop_baseline()
    os.environ.clear()
    os.environ.update(before[0])
    sys.path[:] = before[1]
    os.chdir(before[2])


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    left = [name for name in sys.modules if name.startswith("archive") and name[7:8].isdigit()]
    assert left == []
    assert imports._finder.namespaces == {}
    assert list(ARCHIVES.rglob("__pycache__")) == []
