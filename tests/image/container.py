"""A berth server in a container, with the verbs of ``tests.server.Server``: the same tests run against both."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.server import Server, free_port

#: What is tested; .ci/image.sh has built it.
IMAGE = os.environ.get("IMAGE", "berth:dev")


def docker(*arguments: str, check: bool = True) -> str:
    """Run the docker client; return what it says on stdout."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
    return done.stdout.strip()


class Container(Server):
    """``docker run IMAGE serve`` as the platform does it; ``base`` is seen under the same path on both sides.

    options: of docker run; environ: of the server. The port is published on 127.0.0.1 only.
    """

    def __init__(
        self, base: Path, *options: str, image: str = IMAGE, arguments: tuple[str, ...] = ("serve",), **environ: str
    ) -> None:
        self.base = base
        self.port = free_port()
        (base / "models").mkdir(parents=True, exist_ok=True)
        self.environ = {"SAGEMAKER_BASE_DIR": str(base), "SAGEMAKER_MULTI_MODEL": "true", **environ}
        given = [word for name, value in self.environ.items() for word in ("-e", f"{name}={value}")]
        mount = ("-v", f"{base}:{base}:ro", "-p", f"127.0.0.1:{self.port}:8080")
        self.began_s = time.monotonic()
        self.id = docker("run", "-d", *mount, *given, *options, image, *arguments)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def wait_until_up(self, timeout_s: float = 60) -> Container:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.state()["Running"], f"the container ended: {self.state()}\n{self.log()}"
            with contextlib.suppress(httpx.TransportError):
                if self.http.get("/ping", timeout=2).status_code == 200:
                    return self
            time.sleep(0.02)
        raise AssertionError(f"no /ping within {timeout_s} s:\n{self.log()}")

    def state(self) -> dict[str, Any]:
        """The State of docker inspect: Running, Pid, ExitCode, OOMKilled."""
        state: dict[str, Any] = json.loads(docker("inspect", "-f", "{{json .State}}", self.id))
        return state

    def log(self) -> str:
        done = subprocess.run(["docker", "logs", self.id], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.stdout

    def family(self) -> list[psutil.Process]:
        """Every process of the container but PID 1, as the host sees them."""
        try:
            return psutil.Process(self.state()["Pid"]).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def execute(self, *command: str) -> str:
        """Run a command beside the server."""
        return docker("exec", self.id, *command)

    def stop(self, timeout_s: float = 30) -> int:
        """SIGTERM, and SIGKILL after ``timeout_s`` ; return the exit status (137: it was killed)."""
        self.http.close()
        docker("stop", "-t", str(int(timeout_s)), self.id)
        return int(self.state()["ExitCode"])

    def remove(self) -> None:
        """Let nothing of the container remain, running or not."""
        self.http.close()
        docker("rm", "-f", "-v", self.id, check=False)


@contextlib.contextmanager
def contained(base: Path, *options: str, image: str = IMAGE, **environ: str) -> Iterator[Container]:
    """One container for a test; it must end by itself with status 0."""
    container = Container(base, *options, image=image, **environ)
    try:
        yield container.wait_until_up()
        status = container.stop()
        assert status == 0, container.log()
    finally:
        container.remove()
