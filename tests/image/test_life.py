"""A container's life: users, read-only root, memory limit, PID 1's duties, SIGTERM."""

from __future__ import annotations

import concurrent.futures
import time
from pathlib import Path

import psutil
import pytest

from tests.image.container import contained
from tests.makers import tiny_bert, vast_bert
from tests.server import write_handler

ECHO = """
from container.handler import Handler

class Echo(Handler):
    def predict(self, batch):
        return batch
"""
SLOW = "import time\n" + ECHO.replace("return batch", "time.sleep(3)\n        return batch")

#: Options of docker run under which everything must work: root as on SageMaker, and the ways of a careful cluster.
WAYS = {
    "as root": (),
    "as another user": ("--user", "10001:10001"),
    "with a read-only root filesystem": ("--read-only", "--tmpfs", "/var/lib/berth"),
    "as another user, read-only, without capabilities": (
        *("--user", "10001:10001", "--read-only", "--tmpfs", "/var/lib/berth"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_models_of_ours_and_of_others_are_served(open_path: Path, way: str) -> None:
    with contained(open_path, *WAYS[way]) as container:
        tiny_bert(container.folder("bert"))
        write_handler(container.folder("echo"), ECHO)
        (container.folder("bert") / "model.safetensors").chmod(0o644)  # safetensors writes for its user only
        for name in ("bert", "echo"):
            assert container.load(name).status_code == 200, container.log()
        assert len(container.invoke("bert", {"inputs": "a b c"}).raise_for_status().json()) == 32
        assert container.invoke("echo", [1, 2]).json() == [1, 2]
        assert container.unload("bert").status_code == 200
        assert container.names() == ["echo"]


def test_a_folder_of_models_is_served_without_a_word_of_http(open_path: Path) -> None:
    write_handler(open_path / "mine" / "echo", ECHO)
    with contained(open_path, BERTH_MODELS=str(open_path / "mine")) as container:
        deadline = time.monotonic() + 60
        while container.names() != ["echo"] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert container.invoke("echo", "x").json() == "x"


def test_the_memory_of_the_container_not_of_the_machine_is_what_models_may_take(open_path: Path) -> None:
    with contained(open_path, "--memory", "1g", "--memory-swap", "1g") as container:
        vast_bert(container.folder("vast"))
        refused = container.load("vast")
        assert (refused.status_code, refused.json()["reason"]) == (400, "memory.larger_than_limit"), refused.text
        tiny_bert(container.folder("small"))
        loaded = container.load("small")
        assert loaded.status_code == 200, loaded.text
        assert not container.state()["OOMKilled"]


def test_pid_1_reaps_orphans_and_replaces_the_dead(open_path: Path) -> None:
    with contained(open_path) as container:
        write_handler(container.folder("echo"), ECHO)
        container.load("echo").raise_for_status()
        first = psutil.Process(container.state()["Pid"])
        container.execute("sh", "-c", "(sleep 0.3 &) ; (sleep 0.3 &)")
        psutil.Process(container.pid_of("engine")).kill()
        deadline = time.monotonic() + 60
        while container.invoke("echo", [1]).status_code != 200:
            assert time.monotonic() < deadline, container.log()
            time.sleep(0.1)
        time.sleep(0.5)
        assert [each for each in container.family() if each.status() == psutil.STATUS_ZOMBIE] == []
        assert psutil.Process(container.state()["Pid"]) == first


def test_sigterm_lets_the_call_in_flight_finish_and_ends_well_before_the_kill(open_path: Path) -> None:
    with contained(open_path) as container:
        write_handler(container.folder("slow"), SLOW)
        container.load("slow").raise_for_status()
        family = container.family()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            call = pool.submit(container.invoke, "slow", [7])
            time.sleep(1)
            container_http, container.http = container.http, type(container.http)()
            status = container.stop(timeout_s=30)  # docker kills after that: status 137
            assert call.result().json() == [7]
            container_http.close()
        assert status == 0, container.log()
        assert [process for process in family if process.is_running()] == []
