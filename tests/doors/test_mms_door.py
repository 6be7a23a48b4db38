"""What only the mms door has: Java, its workers, and what becomes of them when something dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from container.mms.door import CannotStart, variables
from container.mms.service import Door
from container.settings import Settings
from tests.makers import tiny_bert
from tests.server import ROOT, Server, living, running, write_handler

ECHO = """
import time
from container.handler import Handler

class Echo(Handler):
    def predict(self, batch):
        if batch == ["slow"]:
            time.sleep(2)
        return batch
"""
JAVA = "com.amazonaws.ml.mms.ModelServer"


def eventually(holds: Callable[[], bool], within_s: float = 20) -> bool:
    until = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def listed(server: Server) -> list[str] | None:
    """The names, None while nothing listens."""
    try:
        return server.names()
    except httpx.TransportError:
        return None


def two_models(server: Server) -> Server:
    write_handler(server.folder("echo"), ECHO)
    tiny_bert(server.folder("bert"))
    for name in ("echo", "bert"):
        server.load(name).raise_for_status()
    return server


def test_a_worker_needs_neither_torch_nor_flask_nor_an_event_loop() -> None:
    code = "import sys, container.mms.worker; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.append({str(ROOT)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(re.findall(r"'(\w+)'", done.stdout))
    assert {"container", "mms", "msgspec"} <= loaded
    assert not {"torch", "flask", "asyncio", "numpy", "uvloop", "gunicorn", "transformers"} & loaded


def test_a_dead_engine_costs_what_was_in_flight_and_a_dead_java_what_it_knew(tmp_path: Path) -> None:
    with running(tmp_path, BERTH_DOOR="mms") as server:
        two_models(server)
        vector = server.invoke("bert", {"inputs": "a b"}).json()
        workers = living(server.family(), "model_service_worker.py")
        assert len(workers) == 4, "a server process and a fork of it for each model"
        for worker in workers:
            assert worker.memory_full_info().uss < 20 << 20
        (engine,) = living(server.family(), "container.engine.main")
        engine.kill()
        answer = server.invoke("echo", [1])
        assert (answer.status_code, answer.json()["reason"]) == (503, "server.restarting")
        assert answer.headers["retry-after"] == "1"
        assert eventually(lambda: server.invoke("echo", [2]).status_code == 200)
        assert server.invoke("bert", {"inputs": "a b"}).json() == pytest.approx(vector)
        assert server.names() == ["bert", "echo"]
        assert living(server.family(), "model_service_worker.py") == workers
        server.unload("echo").raise_for_status()
        assert eventually(lambda: len(living(server.family(), "model_service_worker.py")) == 2)
        assert eventually(lambda: "unloaded echo" in server.log())

        (java,) = living(server.family(), JAVA)
        java.kill()
        assert eventually(lambda: listed(server) == []), "a new Java knows no models; the platform loads them"
        assert eventually(lambda: "unloaded bert" in server.log())
        assert living(server.family(), "model_service_worker.py") == []
        server.load("bert").raise_for_status()
        assert server.invoke("bert", {"inputs": "a b"}).json() == pytest.approx(vector)


def test_sigterm_lets_the_running_request_finish_and_leaves_no_process(tmp_path: Path) -> None:
    server = two_models(Server(tmp_path, BERTH_DOOR="mms").wait_until_up())
    answers: list[httpx.Response] = []
    url = f"http://127.0.0.1:{server.port}/models/echo/invoke"
    caller = threading.Thread(target=lambda: answers.append(httpx.post(url, json="slow", timeout=30)))
    caller.start()
    time.sleep(0.5)
    assert server.stop() == 0
    caller.join()
    assert answers[0].json() == "slow"


@pytest.mark.parametrize("victim", ["supervisor", "door"])
def test_a_killed_parent_leaves_no_java_behind(tmp_path: Path, victim: str) -> None:
    server = two_models(Server(tmp_path, BERTH_DOOR="mms").wait_until_up())
    (java,) = living(server.family(), JAVA)
    family = server.family()
    if victim == "supervisor":
        server.process.kill()
        server.process.wait()
        assert eventually(lambda: not any(process.is_running() for process in family))
        server.http.close()
        return
    (door,) = living(server.family(), "container.mms.door")
    os.kill(door.pid, signal.SIGKILL)
    assert eventually(lambda: not java.is_running())
    server.wait_until_up()
    assert server.names() == []
    assert server.stop() == 0


def test_what_lies_in_an_archive_is_never_imported_by_a_worker(tmp_path: Path) -> None:
    with running(tmp_path, BERTH_DOOR="mms", BERTH_ALLOW_CODE="off") as server:
        folder = tiny_bert(server.folder("sly"))
        for module in ("json", "sitecustomize", "encodings", "logging", "service"):
            (folder / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit('ran')")
        (folder / "MAR-INF").mkdir()
        assert server.load("sly").status_code == 200, server.log()
        assert len(server.invoke("sly", {"inputs": "a"}).json()) == 32
        assert not (tmp_path / "ran").exists()


def test_two_workers_hold_one_model_and_are_refused_as_one(tmp_path: Path) -> None:
    size = (tiny_bert(tmp_path / "scale") / "model.safetensors").stat().st_size
    limits = {"BERTH_MEMORY_LIMIT": str(size + size // 2), "BERTH_EVICTION": "platform"}
    with running(tmp_path, BERTH_DOOR="mms", SAGEMAKER_MODEL_SERVER_WORKERS="2", **limits) as server:
        for number, name in enumerate(("one", "two")):
            tiny_bert(server.folder(name), number)
        server.load("one").raise_for_status()
        assert server.load("two").status_code == 507
        # A thread of Java's that is still interrupting the refused workers may hit the next load's, once in a hundred.
        time.sleep(0.5)
        assert server.names() == ["one"]
        assert eventually(lambda: len(living(server.family(), "model_service_worker.py")) == 3), (
            "a server process and its two forks"
        )
        server.unload("one").raise_for_status()
        server.load("two").raise_for_status()
        assert len(server.invoke("two", {"inputs": "a"}).json()) == 32
        assert server.log().count("unloaded one") == 1


def test_a_single_model_stands_behind_invocations(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "model")
    with running(tmp_path, BERTH_DOOR="mms", SAGEMAKER_MULTI_MODEL="") as server:
        url, body = "/invocations", {"inputs": "a b"}
        assert eventually(lambda: server.http.post(url, json=body).status_code == 200), server.log()
        assert len(server.http.post(url, json=body).json()) == 32
        assert server.names() == ["model"]


def test_a_port_that_java_does_not_take_and_a_door_that_lists_nothing_are_refused_in_words(tmp_path: Path) -> None:
    settings = Settings.read({"SAGEMAKER_BIND_TO_PORT": "40000", "BERTH_STATE_DIR": str(tmp_path)})
    with pytest.raises(CannotStart, match="32766"):
        variables(settings, {}, tmp_path)
    environ = {"PATH": os.environ["PATH"], "BERTH_STATE_DIR": str(tmp_path), "BERTH_DOOR": "mms"}
    command = [sys.executable, "-m", "container", "serve", "--models", str(tmp_path)]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "--models" in done.stderr


def test_java_is_found_or_its_want_is_told(tmp_path: Path) -> None:
    settings = Settings.read({"BERTH_STATE_DIR": str(tmp_path)})
    found = variables(settings, {"PATH": str(tmp_path)}, tmp_path)
    assert (Path(found["JAVA_HOME"]) / "bin" / "java").exists()
    assert "JAVA_HOME" not in variables(settings, {"PATH": str(Path(found["JAVA_HOME"]) / "bin")}, tmp_path)
    given = {"SAGEMAKER_MODEL_SERVER_VMARGS": "-Xmx3g", "PATH": ""}
    assert variables(settings, given, tmp_path)["SAGEMAKER_MODEL_SERVER_VMARGS"] == "-Xmx3g"


def test_what_a_worker_must_know_reads_back(tmp_path: Path) -> None:
    told = Door("/run/engine.sock", "text/csv")
    told.write(tmp_path)
    assert Door.read(tmp_path) == told
