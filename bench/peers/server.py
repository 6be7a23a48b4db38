"""What all servers of the bench have in common: a process tree on one loopback port that speaks SageMaker's API."""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import ClassVar, Self

from bench import archives, processes
from bench.groups import Group
from bench.load import Call
from bench.machine import ROOT

#: Not handed on: a server of the bench is configured by its peer file alone.
_OURS = ("BERTH_", "SAGEMAKER_", "MMS_", "OMP_", "MKL_")


class PeerFailed(RuntimeError):
    """A server did not start, or did not answer as it should; the message ends with its log."""


class Server:
    """One server. Subclasses say how it is started; ``with Peer() as peer`` starts and stops it."""

    name: ClassVar[str]
    start_limit_s: ClassVar[float] = 60.0

    def __init__(self) -> None:
        self.marker = uuid.uuid4().hex
        self.folder = ROOT / ".bench" / "run" / f"{self.name}-{self.marker[:8]}"
        # Unix sockets allow 108 bytes of path, wherever the checkout lies.
        self.scratch = Path(tempfile.mkdtemp(prefix="bench-"))
        self.port = _free_port()
        #: Seconds from starting the process to the first 200 of /ping; set by ``start``.
        self.started_s = 0.0
        #: The control group that its processes run in.
        self.within: Group | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Return the command line that stays in the foreground."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return the variables to set beyond those inherited."""
        return {}

    def invoke_path(self, model: str) -> str:
        """Return the path that invokes ``model``."""
        return f"/models/{model}/invoke"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and return when /ping answers 200. Raises PeerFailed."""
        self.folder.mkdir(parents=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        inherited["PYTHONPATH"] = str(ROOT)
        environment = {**inherited, **self.environment(), processes.MARKER: self.marker}
        command = self.command() if self.within is None else self.within.entering(self.command())
        began = time.monotonic()
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        while time.monotonic() - began < self.start_limit_s:
            if self._process.poll() is not None:
                break
            try:
                if self.call("GET", "/ping", limit_s=2)[0] == 200:
                    self.started_s = time.monotonic() - began
                    return
            except OSError:
                time.sleep(0.02)
        log_text = self.log()
        self.stop()
        raise PeerFailed(f"{self.name} did not become healthy; its log ends:\n{log_text}")

    def stop(self) -> None:
        """End all its processes and remove its folders."""
        if self._process is not None:
            processes.end(self._process.pid, self.marker)
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def pids(self) -> list[int]:
        """Return its processes."""
        return processes.tree(self.marker)

    def place(self, model: str, archive: Path) -> Path:
        """Put ``archive`` where the platform would unpack it for ``model``; return that folder."""
        folder = self.folder / "base" / "models" / model / "model"
        archives.place(archive, folder)
        return folder

    def load(self, model: str, archive: Path) -> None:
        """Place and load a model. Raises PeerFailed."""
        self.post_model(model, self.place(model, archive))

    def post_model(self, model: str, folder: Path) -> None:
        """POST /models. Raises PeerFailed."""
        body = json.dumps({"model_name": model, "url": str(folder)}).encode()
        self._must("POST", "/models", body)

    def unload(self, model: str) -> None:
        """DELETE /models/{model}. Raises PeerFailed."""
        self._must("DELETE", f"/models/{model}")

    def invoke(self, model: str, body: bytes) -> bytes:
        """Return the answer of ``model``. Raises PeerFailed."""
        return self._must("POST", self.invoke_path(model), body)

    def invocation(self, model: str, body: bytes) -> Call:
        """Return the same as a call for the load generator."""
        return Call.post(self.invoke_path(model), body)

    def call(self, method: str, path: str, body: bytes = b"", limit_s: float = 120) -> tuple[int, bytes]:
        """Send one request on a connection of its own; return status and body. Raises OSError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=limit_s)
        try:
            connection.request(method, path, body or None, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()

    def log(self) -> str:
        """Return the end of what it wrote."""
        return "\n".join((self.folder / "log").read_text(errors="replace").splitlines()[-30:])

    def _must(self, method: str, path: str, body: bytes = b"") -> bytes:
        status, answer = self.call(method, path, body)
        if not 200 <= status < 300:
            text = answer.decode(errors="replace")[:500]
            raise PeerFailed(f"{self.name}: {method} {path} answered {status}: {text}\n{self.log()}")
        return answer


def _free_port() -> int:
    """Return a free loopback port under 32,767, the largest that multi-model-server accepts."""
    for port in random.sample(range(20_000, 32_000), 50):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise PeerFailed("no free port between 20000 and 32000 on loopback")
