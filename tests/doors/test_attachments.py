"""A model that belongs to connections: the first loads it, the last end unloads it. The engine's socket, no Java."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from container.errors import LoadFailed, ModelExists, ServingError
from container.mms.link import Attachment, Link
from container.payload import Payload
from tests.server import ROOT, Server, running, write_handler

ECHO = """
from container.handler import Handler

class Echo(Handler):
    def predict(self, batch):
        return batch
"""
SLOW = "import time\n" + ECHO + "\n    def load(self, model_dir, context):\n        time.sleep(1.5)\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("base")) as started:
        yield started


@pytest.fixture
def link(server: Server) -> Iterator[Callable[..., Link]]:
    """Make a link that holds a model of this name; closed at the end."""
    links: list[Link] = []

    def make(name: str, folder: Path | None = None) -> Link:
        run_dir = next(Path(server.environ["BERTH_STATE_DIR"]).glob("run-*"))
        held = Attachment(name, str(folder or server.folder(name)))
        links.append(Link(str(run_dir / "engine.sock"), f"test-{len(links)}-{time.monotonic_ns()}", held))
        return links[-1]

    yield make
    for each in links:
        each.close()


def gone(server: Server, name: str, within_s: float = 10) -> bool:
    until = time.monotonic() + within_s
    while server.http.get(f"/models/{name}").status_code != 404:
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def ask(link: Link, name: str, body: bytes = b"[1]") -> bytes:
    (result,) = link.invoke(name, [Payload(body)], time.monotonic() + 60)
    assert isinstance(result, Payload), result
    return result.body


def test_the_last_end_unloads_and_not_the_first(server: Server, link: Callable[..., Link]) -> None:
    write_handler(server.folder("held"), ECHO)
    first, second = link("held"), link("held")
    first.connect()
    second.connect()
    first.close()
    time.sleep(0.2)
    assert ask(second, "held") == b"[1]"
    assert server.names() == ["held"]
    second.close()
    assert gone(server, "held")
    third = link("held")
    third.connect()
    assert ask(third, "held") == b"[1]"


def test_several_requests_of_one_connection_run_together_and_come_back_in_order(
    server: Server, link: Callable[..., Link]
) -> None:
    write_handler(server.folder("many"), ECHO)
    one = link("many")
    bodies = [b"%d" % number for number in range(20)]
    results = one.invoke("many", [Payload(body) for body in bodies], time.monotonic() + 60)
    assert [result.body for result in results if isinstance(result, Payload)] == bodies


def test_who_joins_a_load_that_fails_gets_its_failure_and_the_name_is_free(
    server: Server, link: Callable[..., Link]
) -> None:
    write_handler(server.folder("fails"), SLOW.replace("time.sleep(1.5)", "time.sleep(0.5); raise OSError('no card')"))
    failures: list[ServingError] = []

    def connect() -> None:
        try:
            link("fails").connect()
        except ServingError as error:
            failures.append(error)

    callers = [threading.Thread(target=connect) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [type(each) for each in failures] == [LoadFailed] * 3
    assert gone(server, "fails")


def test_hanging_up_during_the_load_leaves_nothing(server: Server, link: Callable[..., Link]) -> None:
    write_handler(server.folder("left"), SLOW)
    run_dir = next(Path(server.environ["BERTH_STATE_DIR"]).glob("run-*"))
    held = ("left", str(server.folder("left")))
    code = (
        f"from container.mms.link import *; Link({str(run_dir / 'engine.sock')!r}, 'dies', Attachment{held}).connect()"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as holder:
        until = time.monotonic() + 60
        while server.http.get("/models/left").status_code == 404 and time.monotonic() < until:
            time.sleep(0.01)
        holder.kill()
    assert server.describe("left")["state"] == "loading"
    assert gone(server, "left")
    assert "left" not in server.names()


def test_another_folder_waits_until_the_name_is_free(server: Server, link: Callable[..., Link]) -> None:
    write_handler(server.folder("name"), ECHO)
    write_handler(server.folder("other"), ECHO.replace("return batch", "return ['other'] * len(batch)"))
    first, second = link("name"), link("name", server.folder("other"))
    first.connect()
    waiting = threading.Thread(target=second.connect)
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive()
    assert ask(first, "name") == b"[1]"
    first.close()
    waiting.join(10)
    assert ask(second, "name") == b'"other"'


def test_a_model_that_was_posted_may_be_joined_and_outlives_who_joined(
    server: Server, link: Callable[..., Link]
) -> None:
    write_handler(server.folder("posted"), ECHO)
    server.load("posted").raise_for_status()
    one = link("posted")
    one.connect()
    one.close()
    time.sleep(0.3)
    assert server.invoke("posted", [2]).json() == [2]
    with pytest.raises(ModelExists):
        link("posted", write_handler(server.folder("elsewhere"), ECHO)).connect()
    server.unload("posted").raise_for_status()


def test_a_load_goes_on_when_the_front_that_asked_for_it_dies(tmp_path: Path) -> None:
    with running(tmp_path) as server:

        def lost() -> None:
            with pytest.raises(httpx.TransportError):
                server.load("slow")

        write_handler(server.folder("slow"), SLOW)
        caller = threading.Thread(target=lost)
        caller.start()
        time.sleep(0.7)
        master = server.pid_of("front")
        (worker,) = [process for process in server.family() if process.ppid() == master]
        worker.kill()
        caller.join()
        psutil.wait_procs([worker], timeout=5)
        server.http.close()
        server.http = httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60)
        server.wait_until_up()
        assert server.load("slow").status_code == 409
        assert server.invoke("slow", [1]).json() == [1]
