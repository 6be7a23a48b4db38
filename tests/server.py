"""A real berth server for tests: real processes, real HTTP, everything under one temporary folder."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """A port that is free now, and that no outgoing connection will be given; multi-model-server takes it, too."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 50):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port between 20000 and 32000")


def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    """Return once ``condition`` holds; fail if it does not within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s"
        time.sleep(0.05)


def living(processes: list[psutil.Process], mark: str) -> list[psutil.Process]:
    """Return those with ``mark`` in their command line; one that has just died, or waits to be reaped, is none."""
    found = []
    for process in processes:
        try:
            if mark in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


class Server:
    """One server; ``http`` talks to it. ``base`` is its SAGEMAKER_BASE_DIR."""

    def __init__(self, base: Path, *arguments: str, **environ: str) -> None:
        self.base = base
        self.port = free_port()
        self.log_path = base / "server.log"
        (base / "models").mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BERTH_", "SAGEMAKER_"))}
        self.environ = {
            **kept,
            "SAGEMAKER_BIND_TO_PORT": str(self.port),
            "SAGEMAKER_BASE_DIR": str(base),
            "SAGEMAKER_MULTI_MODEL": "true",
            "BERTH_STATE_DIR": str(base / "state"),
            **environ,
        }
        with self.log_path.open("w") as log:
            command = [sys.executable, "-m", "container", "serve", *arguments]
            self.process = subprocess.Popen(command, env=self.environ, stdout=log, stderr=log, cwd=ROOT)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def wait_until_up(self, timeout_s: float = 60) -> Server:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log()}")
            try:
                if self.http.get("/ping", timeout=2).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise AssertionError(f"no /ping within {timeout_s} s:\n{self.log()}")

    def log(self) -> str:
        return self.log_path.read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def stop(self, timeout_s: float = 28) -> int:
        """SIGTERM; return the exit status, with no process left behind."""
        family = self.family()
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout_s)
        _, alive = psutil.wait_procs(family, timeout=3)
        assert not alive, f"left behind: {[process.cmdline() for process in alive]}"
        return status

    def family(self) -> list[psutil.Process]:
        """Every process of the server but the supervisor."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def pid_of(self, part: str, timeout_s: float = 60) -> int:
        """Return the pid of "engine", "guests" or "front" (gunicorn's master); waits for one that is being replaced."""
        marks = {"engine": "container.engine.main", "guests": "container.host.child", "front": "container.front.main"}
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for process in living(self.family(), marks[part]):
                pid: int = process.pid
                return pid
            time.sleep(0.05)
        raise AssertionError(f"no {part} process among {self.family()}")

    # ------------------------------------------------------------------- verbs

    def folder(self, name: str) -> Path:
        """Where the platform would extract the archive of ``name``."""
        return self.base / "models" / name / "model"

    def load(self, name: str, url: Path | str | None = None) -> httpx.Response:
        return self.http.post("/models", json={"model_name": name, "url": str(url or self.folder(name))})

    def unload(self, name: str) -> httpx.Response:
        return self.http.delete(f"/models/{name}")

    def invoke(self, name: str, body: Any, **headers: str) -> httpx.Response:
        """JSON unless ``body`` is bytes; header names are written with underscores."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {
            "content-type": "application/json",
            **{key.replace("_", "-"): value for key, value in headers.items()},
        }
        return self.http.post(f"/models/{name}/invoke", content=content, headers=fields)

    def describe(self, name: str) -> dict[str, Any]:
        described: dict[str, Any] = self.http.get(f"/models/{name}").raise_for_status().json()
        return described

    def names(self) -> list[str]:
        """Every listed name, through the pages."""
        names: list[str] = []
        token = ""
        while True:
            page = (
                self.http.get("/models", params={"next_page_token": token} if token else {}).raise_for_status().json()
            )
            names += [model["modelName"] for model in page["models"]]
            token = page.get("nextPageToken", "")
            if not token:
                return names


@contextmanager
def running(base: Path, *arguments: str, **environ: str) -> Iterator[Server]:
    server = Server(base, *arguments, **environ)
    try:
        yield server.wait_until_up()
    finally:
        status = server.stop()
    assert status == 0, server.log()


def write_script(folder: Path, code: str, **others: str) -> Path:
    """An archive of kind 1: ``code/inference.py`` and other modules beside it."""
    home = folder / "code"
    home.mkdir(parents=True, exist_ok=True)
    (home / "inference.py").write_text(code)
    for module, text in others.items():
        (home / f"{module}.py").write_text(text)
    return folder


def write_handler(folder: Path, code: str, **berth: Any) -> Path:
    """An archive of kind 5: ``code/handler.py``, and ``berth.json`` if anything is given for it."""
    home = folder / "code"
    home.mkdir(parents=True, exist_ok=True)
    (home / "handler.py").write_text(code)
    if berth:
        (folder / "berth.json").write_text(json.dumps(berth))
    return folder
