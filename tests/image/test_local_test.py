"""local_test on the image: serve_local.sh --docker with two instances, and the compose file."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import boto3

from tests.image.container import IMAGE, docker
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


def compose(*arguments: str, **environ: str) -> str:
    """Run docker-compose, or docker's plugin, on local_test/compose.yml; return what it says on stdout."""
    program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    command = [*program, "-f", str(ROOT / "local_test" / "compose.yml"), "-p", f"berth-try-{os.getpid()}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environ)
    assert done.returncode == 0, f"{command}: {done.stderr} (apt-get install docker-compose)"
    return done.stdout


def test_the_compose_file_is_one_and_says_what_docker_run_would() -> None:
    said = compose("config")
    for words in ("berth:dev", "127.0.0.1:8081:8080", "127.0.0.1:8082:8080", "SAGEMAKER_MULTI_MODEL:"):
        assert words in said


def test_what_compose_starts_answers_boto3_through_the_stand_in_and_ends_with_status_0(open_path: Path) -> None:
    archives, ml = open_path / "archives", open_path / "ml"
    archives.mkdir()
    (ml / "models").mkdir(parents=True)
    write_handler(open_path / "echo", SLEEPS)
    with tarfile.open(archives / "echo.tar.gz", "w:gz") as tar:
        tar.add(open_path / "echo", arcname=".")
    ports = [str(free_port()), str(free_port())]
    environ = {"PORT_1": ports[0], "PORT_2": ports[1], "ML": str(ml), "IMAGE": IMAGE}
    command = [sys.executable, "-m", "local_test.endpoint", "--models", str(archives), "--base", str(ml)]
    command += [word for port in ports for word in ("--container", f"http://127.0.0.1:{port}")]
    try:
        compose("up", "-d", **environ)
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as front:
            assert front.stdout is not None
            address = front.stdout.readline().strip()
            client = boto3.client(
                "sagemaker-runtime",
                endpoint_url=address,
                region_name="us-east-1",
                aws_access_key_id="local",
                aws_secret_access_key="local",
            )
            asked = {"EndpointName": "local", "TargetModel": "echo.tar.gz", "ContentType": "application/json"}
            assert json.load(client.invoke_endpoint(**asked, Body=b"[7]")["Body"]) == [7]
            assert [each["state"] for each in status(address)] == ["healthy", "healthy"]
            front.terminate()
        made = compose("ps", "-q", **environ).split()
        assert len(made) == 2
        compose("stop", **environ)
        assert [docker("inspect", "-f", "{{.State.ExitCode}}", each) for each in made] == ["0", "0"]
    finally:
        compose("down", "-v", **environ)
    assert docker("ps", "-aq", "--filter", f"name=berth-try-{os.getpid()}") == ""
