"""/ping, asked all the time, over front workers that die and are replaced."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

from tests.server import Server, living, running, until, write_handler

ECHO = """
from container.handler import Handler

class Echo(Handler):
    def predict(self, batch):
        return batch
"""
EVERY_S = 0.02
KILLS = 6


class Pinger(threading.Thread):
    """Asks every 20 ms on a connection that it keeps, or each time on a new one; ``told`` counts what it was told."""

    def __init__(self, port: int, path: str, body: bytes | None, *, keeps: bool) -> None:
        super().__init__()
        self._port, self._path, self._body, self._keeps = port, path, body, keeps
        self._ends = threading.Event()
        self.told: Counter[str] = Counter()

    def run(self) -> None:
        connection = self._connection()
        while not self._ends.is_set():
            try:
                connection.request("POST" if self._body else "GET", self._path, self._body)
                answer = connection.getresponse()
                text = answer.read().decode()
                self.told["200" if answer.status == 200 else f"{answer.status}: {text}"] += 1
            except (OSError, http.client.HTTPException):  # the worker took the connection along
                self.told["hung up"] += 1
                connection.close()
                connection = self._connection()
            if not self._keeps:
                connection.close()
                connection = self._connection()
            time.sleep(EVERY_S)
        connection.close()

    def end(self) -> Counter[str]:
        """Stop asking; return what was told."""
        self._ends.set()
        self.join()
        return self.told

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)


def workers(server: Server) -> list[psutil.Process]:
    """The front's workers."""
    master = server.pid_of("front")
    return [each for each in living(server.family(), "") if each.ppid() == master]


def test_ping_says_200_and_models_answer_while_front_workers_are_killed_and_replaced(tmp_path: Path) -> None:
    """Only a connection that the killed worker had may break; a new worker is right from its first answer on."""
    with running(tmp_path, BERTH_FRONT_WORKERS="2") as server:
        write_handler(server.folder("echo"), ECHO)
        server.load("echo").raise_for_status()
        until(lambda: len(workers(server)) == 2)
        pingers = [Pinger(server.port, "/ping", None, keeps=keeps) for keeps in (True, False, False)]
        callers = [Pinger(server.port, "/models/echo/invoke", b"[1]", keeps=False) for _ in range(2)]
        asking = [*pingers, *callers]
        for each in asking:
            each.start()
        for _ in range(KILLS):
            oldest = min(workers(server), key=lambda process: process.create_time())
            oldest.kill()
            until(lambda: (there := workers(server)) and oldest not in there and len(there) == 2)  # noqa: B023 - now
            time.sleep(0.3)
        told = [each.end() for each in asking]
        assert all(counts.keys() <= {"200", "hung up"} for counts in told), told
        assert all(counts["hung up"] <= 2 * KILLS and counts["200"] > KILLS for counts in told), told
