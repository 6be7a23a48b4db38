"""A Service behind a Unix socket.

One of the four process edges: whatever a coroutine of the service raises beyond ServingError becomes Internal for
the peer and one traceback in the log.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from container import log
from container.errors import Internal, ServingError
from container.wire import frames
from container.wire import messages as m
from container.wire.api import Service
from container.wire.outbox import Outbox

_log = log.get(__name__)


class _Connection(Outbox):
    """One peer's connection, or its bulk twin."""

    def __init__(self, service: Service, peers: dict[str, _Connection]) -> None:
        super().__init__()
        self._service = service
        self._peers = peers
        self._reader = frames.FrameReader(frames.REQUESTS)
        self._tasks: set[asyncio.Task[None]] = set()
        self.bulk: _Connection | None = None
        self._main: _Connection = self
        self._name = ""

    def data_received(self, data: bytes) -> None:
        """Take each whole request; bytes that are no frame end the connection."""
        try:
            for request in self._reader.feed(data):
                self._main._take(request, self)
        except frames.FrameError as error:
            _log.error("closing a connection: %s", error)
            if self.transport is not None:
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the peer; with its main connection goes all that it asked for."""
        if self._main is self:
            self._service.gone(self.reply)
            for task in self._tasks:
                task.cancel()
            if self._peers.get(self._name) is self:
                del self._peers[self._name]
        self._main.bulk = None
        super().connection_lost(exc)

    def reply(self, reply: m.Reply) -> None:
        """Send ``reply`` to the peer, on its bulk connection if it is large; a peer that is gone gets nothing.

        Chunks keep to one connection, whatever their size: their order matters.
        """
        frame = frames.encode(reply)
        bulky = len(frame) > frames.BULK_BYTES and not isinstance(reply, m.Chunk)
        (self.bulk if bulky and self.bulk is not None else self).put(frame)

    def _take(self, request: m.Request, origin: _Connection) -> None:
        match request:
            case m.Invoke():
                self._service.invoke(request, self.reply)
            case m.Cancel():
                self._service.cancel(request.id, self.reply)
            case m.Counts():
                self._service.counts(request)
            case m.Hello():
                origin._greet(request)
            case m.Load():
                self._spawn(self._service.load(request), request.id)
            case m.Attach():
                self._spawn(self._service.attach(request, self.reply), request.id)
            case m.Move():
                self._spawn(self._service.move(request), request.id)
            case m.Share():
                self._spawn(self._service.share(request), request.id)
            case m.Unload():
                self._spawn(self._service.unload(request), request.id)
            case m.List():
                self._spawn(self._service.list(request), request.id)
            case m.Describe():
                self._spawn(self._service.describe(request), request.id)
            case m.Ready():
                self._spawn(self._service.ready(request), request.id)
            case m.Stats():
                self._spawn(self._service.stats(request), request.id)
            case m.Drain():
                self._spawn(self._service.drain(request), request.id)

    def _greet(self, hello: m.Hello) -> None:
        if not hello.bulk:
            self._name = hello.client
            self._peers[hello.client] = self
        elif (main := self._peers.get(hello.client)) is not None:
            self._main, main.bulk = main, self

    def _spawn(self, work: Coroutine[Any, Any, m.Reply], request_id: int) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(work, request_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, work: Coroutine[Any, Any, m.Reply], request_id: int) -> None:
        try:
            reply = await work
        except ServingError as error:
            reply = m.Failed(request_id, error.to_failure())
        except Exception:  # noqa: BLE001 - the edge of the process: nothing unforeseen may reach the peer as it is
            _log.exception("request %d failed in a way nobody foresaw", request_id)
            reply = m.Failed(request_id, Internal(Internal.TEXT).to_failure())
        self.reply(reply)


def make_run_folder(folder: Path) -> None:
    """Make ``folder``, where sockets lie, this user's alone. Raises OSError, for another user's or a link, too.

    It may be in a place where everybody writes (``Settings.run_dir``), under a name that anybody can work out.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, f"{folder} belongs to somebody else, or is a link")
    folder.chmod(0o700)


async def serve(service: Service, path: Path) -> asyncio.Server:
    """Listen on the Unix socket ``path`` (mode 0600), an old one in its place is removed; return the server."""
    path.unlink(missing_ok=True)
    peers: dict[str, _Connection] = {}
    server = await asyncio.get_running_loop().create_unix_server(lambda: _Connection(service, peers), str(path))
    path.chmod(0o600)
    return server
