"""The road of a model, word for word as in tests/system, against the image; and the demo's archives behind it."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.image.container import Container, contained
from tests.server import ROOT
from tests.system import test_the_road

#: Those that start no server of their own.
BORROWED = {
    name: test
    for name, test in vars(test_the_road).items()
    if name.startswith("test_") and "server" in inspect.signature(test).parameters
}
globals().update(BORROWED)

#: archive -> (body, what is true of its answer)
DEMO = {
    "sentences.tar.gz": ({"inputs": "a cat sits"}, lambda answer: len(answer) == 384),
    "prose.tar.gz": ({"inputs": "Alice was"}, lambda answer: answer[0]["generated_text"].startswith("Alice was")),
    "celsius.tar.gz": ([100, 0], lambda answer: answer == [212.0, 32.0]),
}


@contextmanager
def stand_in(container: Container, archives: Path) -> Iterator[str]:
    """The endpoint stand-in in front of a container; yields its address."""
    command = [sys.executable, "-m", "local_test.endpoint", "--models", str(archives), "--base", str(container.base)]
    command += ["--container", f"http://127.0.0.1:{container.port}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@pytest.fixture(autouse=True)
def nothing_stays_loaded(request: pytest.FixtureRequest) -> Iterator[None]:
    """The borrowed tests run in another order here, and each expects an empty server."""
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        for name in server.names():
            server.unload(name).raise_for_status()


def test_the_demos_archives_answer_through_the_stand_in(open_path: Path) -> None:
    archives = ROOT / ".demo" / "archives"
    subprocess.run([sys.executable, "-m", "local_test.archives", str(archives)], cwd=ROOT, check=True)
    with contained(open_path) as container, stand_in(container, archives) as address:
        for archive, (body, is_right) in DEMO.items():
            call = urllib.request.Request(f"{address}/endpoints/local/invocations", json.dumps(body).encode())
            call.add_header("Content-Type", "application/json")
            call.add_header("X-Amzn-SageMaker-Target-Model", archive)
            try:
                with urllib.request.urlopen(call, timeout=60) as answer:
                    said = json.load(answer)
            except urllib.error.HTTPError as error:
                raise AssertionError(f"{archive}: {error.code} {error.read()!r}") from None
            assert is_right(said), (archive, said)
        assert len(container.names()) == len(DEMO)
