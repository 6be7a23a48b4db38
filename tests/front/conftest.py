"""A front as a real gunicorn process, before the engine's double."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from container.settings import Settings
from tests.server import free_port

from .double import Engine, Running

ROOT = Path(__file__).parents[2]
LIMIT_BYTES = 1 << 20


class Front:
    """A gunicorn process. Its payload limit is 1 MiB, so that tests of the limit stay small."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.folder = folder
        self.port = free_port()
        self._environ = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": str(ROOT),
            "SAGEMAKER_BIND_TO_PORT": str(self.port),
            "SAGEMAKER_MULTI_MODEL": "true",
            "SAGEMAKER_MAX_PAYLOAD_IN_MB": "1",
            "SAGEMAKER_BASE_DIR": str(folder / "ml"),
            "BERTH_STATE_DIR": str(folder / "s"),
            **environ,
        }
        self.settings = Settings.read({k: v for k, v in self._environ.items() if not k.startswith("P")})
        self.run_dir = self.settings.run_dir
        self.run_dir.mkdir(parents=True)
        self.socket_path = self.run_dir / "engine.sock"
        self.log_path = folder / "log"

    def start(self) -> Front:
        command = [sys.executable, "-m", "gunicorn", "-c", "python:container.front.gunicorn_conf"]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=self._environ, stderr=log, stdout=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{self.url}/ping", timeout=60)
                return self
            except httpx.HTTPError:
                assert self.process.poll() is None, self.log_path.read_text()
                assert time.monotonic() < deadline, "the front did not come up"
                time.sleep(0.02)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(25)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log_lines(self) -> list[dict[str, object]]:
        """Return the log; a line that is not JSON fails."""
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def wait_healthy(self) -> None:
        deadline = time.monotonic() + 60
        while httpx.get(f"{self.url}/ping", timeout=60).status_code != 200:
            assert time.monotonic() < deadline, httpx.get(f"{self.url}/ping", timeout=60).text
            time.sleep(0.02)


@pytest.fixture(scope="package")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    front = Front(tmp_path_factory.mktemp("front"))
    with Running(front.socket_path) as engine:
        front.engine = engine  # type: ignore[attr-defined]
        front.start().wait_healthy()
        yield front
        front.stop()
    broken = [line for line in front.log_lines() if "traceback" in line or line["level"] in ("error", "critical")]
    assert broken == []


@pytest.fixture
def engine(front: Front) -> Engine:
    """The double behind ``front``, with nothing seen and no models yet."""
    engine: Engine = front.engine  # type: ignore[attr-defined]
    engine.seen.clear()
    engine.held.clear()
    engine.models.clear()
    return engine


@pytest.fixture
def client(front: Front) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=front.url, timeout=60) as client:
        yield client
