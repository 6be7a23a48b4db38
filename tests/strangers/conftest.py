"""One server for all strangers; every answer it gives is looked through."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.makers import tiny_bert
from tests.server import Server, running, write_handler
from tests.strangers.clean import PLANTED, assert_clean

FINE = """
from container.handler import Handler

class Fine(Handler):
    def predict(self, batch):
        return batch
"""


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("strangers"), **PLANTED) as started:

        def look(answer: httpx.Response) -> None:
            answer.read()
            said = f"{answer.request.url} {answer.request.headers} {answer.request.read()!r}"
            assert_clean(f"{answer.headers} {answer.text}", started.base / "state", said)

        started.http.event_hooks["response"].append(look)
        tiny_bert(started.folder("bert"))
        write_handler(started.folder("fine"), FINE)
        for name in ("bert", "fine"):
            started.load(name).raise_for_status()
        yield started


@pytest.fixture(autouse=True)
def nobody_else_noticed(server: Server) -> Iterator[None]:
    """After each stranger: the same processes, the same two models, right answers."""
    parts = ("engine", "guests", "front")
    pids = [server.pid_of(part) for part in parts]
    yield
    assert [server.pid_of(part) for part in parts] == pids
    assert server.http.get("/ping").status_code == 200
    assert server.names() == ["bert", "fine"]
    assert server.invoke("fine", [1, 2]).json() == [1, 2]
    assert len(server.invoke("bert", {"inputs": "a b"}).json()) == 32
