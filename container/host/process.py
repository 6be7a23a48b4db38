"""The engine's handle on one host child: start it, talk to it, notice its death, start it again.

Spawned, never forked: the child begins with a fresh interpreter and imports what its archives import. What they start
ends with it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from container import log
from container.lifeline import end_group
from container.settings import child_environment
from container.wire import messages as m
from container.wire.client import Client

_log = log.get(__name__)
_START_S = 60.0


class ChildProcess:
    """One host child; ``start`` may be called again after ``on_death``.

    alone: it will hold one archive. rehearsed: ``device`` is the CPU, and stands for one with memory of its own.
    """

    def __init__(
        self, name: str, run_dir: Path, device: str, first_slot: int, python: str = sys.executable, *, alone: bool,
        rehearsed: bool = False,
    ) -> None:  # fmt: skip
        self.name = name
        #: The pid of the process that was started last, dead or alive.
        self.last_pid = 0
        self._socket = run_dir / f"{name}.sock"
        self._command = [
            python,
            "-m",
            "container.host.child",
            "--socket",
            str(self._socket),
            "--name",
            name,
            "--device",
            device,
            "--page",
            str(run_dir / "page"),
            "--first-slot",
            str(first_slot),
            *(["--alone"] if alone else []),
            *(["--rehearsed"] if rehearsed else []),
        ]
        self._environ = child_environment()
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self.client: Client | None = None
        #: Called with the exit status (negative: the signal) once after every death that ``stop`` did not ask for.
        self.on_death: Callable[[int], None] = lambda status: None

    @property
    def pid(self) -> int | None:
        """The process id, None while there is no process."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> Client:
        """Return the client of a child that is up. Raises TimeoutError."""
        self._socket.unlink(missing_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            "--parent",
            str(os.getpid()),
            stdin=subprocess.DEVNULL,
            env=self._environ,
            close_fds=True,
            start_new_session=True,  # a group of its own, with all that its archives' code starts
        )
        self.last_pid = self._process.pid
        client = self.client = Client(str(self._socket), "engine")
        self._watch = asyncio.get_running_loop().create_task(self._watch_for_death(self._process, client))
        async with asyncio.timeout(_START_S):
            await client.connect()
            await client.call(m.Ready(0))
        _log.info("host child %s is up with pid %d", self.name, self._process.pid)
        return client

    def kill(self) -> None:
        """End the child at once; on_death follows."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        """End the child and wait; on_death is not called."""
        self.on_death = lambda status: None
        if self.client is not None:
            self.client.close()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), 3)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        if self._watch is not None:
            await self._watch
        self._socket.unlink(missing_ok=True)

    async def _watch_for_death(self, process: asyncio.subprocess.Process, client: Client) -> None:
        status = await process.wait()
        end_group(process.pid)
        client.close()  # whatever is in flight fails now, whether or not the socket has told
        if self.client is client:
            self.client = None
        self.on_death(status)
