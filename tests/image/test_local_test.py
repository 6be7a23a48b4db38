"""local_test on the image: serve_local.sh --docker with two instances, and the compose file."""

from __future__ import annotations

import concurrent.futures
import json
import shutil
import signal
import socket
import subprocess
import tarfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.image.container import docker
from tests.server import ROOT, free_port, write_handler

SLEEPS = """
import time

from container.handler import Handler

class Sleeps(Handler):
    def predict(self, batch):
        time.sleep(0.3)
        return batch
"""


def two_free_ports() -> int:
    """Return the first of two free ports in a row."""
    while True:
        port = free_port()
        with socket.socket() as next_one:
            try:
                next_one.bind(("127.0.0.1", port + 1))
                return port
            except OSError:
                continue


def invoke(address: str, target: str) -> Any:
    call = urllib.request.Request(f"{address}/endpoints/local/invocations", b"[1]")
    call.add_header("Content-Type", "application/json")
    call.add_header("X-Amzn-SageMaker-Target-Model", target)
    with urllib.request.urlopen(call, timeout=60) as answer:
        return json.load(answer)


def status(address: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(address, timeout=10) as page:
        shown: list[dict[str, Any]] = json.load(page)["containers"]
    return shown


def test_a_hot_model_is_on_both_instances_and_a_cold_one_on_one(tmp_path: Path) -> None:
    archives = tmp_path / "archives"
    archives.mkdir()
    for name in ("hot", "cold"):
        write_handler(tmp_path / name, SLEEPS)
        with tarfile.open(archives / f"{name}.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / name, arcname=".")
    first, port = two_free_ports(), free_port()
    command = [str(ROOT / "local_test" / "serve_local.sh"), "--docker", "-n", "2", "-m", "100MiB"]
    command += ["-s", str(first), "-p", str(port), str(archives)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        while not (address := process.stdout.readline().strip()).startswith("http://"):
            assert address, "serve_local.sh has ended"
        assert invoke(address, "cold.tar.gz") == [1]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            assert list(pool.map(lambda _: invoke(address, "hot.tar.gz"), range(64))) == [[1]] * 64
        shown = status(address)
        assert [each["state"] for each in shown] == ["healthy", "healthy"]
        assert sum("cold.tar.gz" in each["loaded"] for each in shown) == 1
        assert all("hot.tar.gz" in each["loaded"] for each in shown)
        assert all("used" in each["memoryBytes"] for each in shown), shown
        names = docker("ps", "--format", "{{.Names}}").splitlines()
        assert len([name for name in names if name.startswith(f"berth-local-{process.pid}-")]) == 2
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=40)
    deadline = time.monotonic() + 60
    while "berth-local-" in docker("ps", "-a", "--format", "{{.Names}}") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "berth-local-" not in docker("ps", "-a", "--format", "{{.Names}}")


def test_the_compose_file_is_one_and_says_what_docker_run_would() -> None:
    file = ROOT / "local_test" / "compose.yml"
    program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    done = subprocess.run([*program, "-f", str(file), "config"], capture_output=True, text=True)
    assert done.returncode == 0, f"{program}: {done.stderr} (apt-get install docker-compose)"
    for words in ("berth:dev", "127.0.0.1:8081:8080", "127.0.0.1:8082:8080", "SAGEMAKER_MULTI_MODEL:"):
        assert words in done.stdout, done.stdout
