"""Is a container fit to serve: /ping and GET /models every five seconds, as the platform asks.

Before the first good round the endpoint is not in service (the platform gives up after eight minutes); afterwards a
container that misses several pings in a row is unhealthy. The real platform then replaces the instance; here calls are
refused until it answers again. A list that fails is fatal only during start-up, and told in the log afterwards.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Literal

from local_test.container_http import Limits, NoAnswer
from local_test.instance import Instance

log = logging.getLogger(__name__)

State = Literal["starting", "healthy", "unhealthy"]
_KEPT = 1000  # ping times kept for the 99th percentile


class Health:
    """The pulse of one container."""

    def __init__(self, instance: Instance, limits: Limits) -> None:
        self.instance = instance
        self.state: State = "starting"
        self.reason = "no ping answered yet"
        self._limits = limits
        self._failures = 0
        self._pings_s: deque[float] = deque(maxlen=_KEPT)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pings", daemon=True)

    def wait_in_service(self) -> bool:
        """Ask every quarter of a second until the first good round; False when start-up took too long."""
        deadline = time.monotonic() + self._limits.startup_s
        told = ""
        while not self.round():
            if self.reason != told:
                told = self.reason
                log.info("waiting for %s: %s", self.instance.container.url, told)
            if time.monotonic() > deadline or self._stop.wait(0.25):
                return False
        return True

    def start(self) -> None:
        """Go on asking in the background."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Stop asking after the round that runs; safe in a signal handler."""
        self._stop.set()

    def stop(self) -> None:
        """Stop asking; returns when the last round has ended."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def round(self) -> bool:
        """Ask once; True when the answer was good."""
        try:
            self._pings_s.append(self.instance.container.ping(self._limits.ping_s))
            if self.state == "starting":
                self.instance.reconcile(self._limits.ping_s)
        except NoAnswer as error:
            self._missed(str(error))
            return False
        self._failures = 0
        if self.state != "healthy":
            log.info("%s is healthy", self.instance.container.url)
        self.state, self.reason = "healthy", ""
        return True

    def ping_p99_ms(self) -> float | None:
        """Return the 99th percentile of the last thousand pings, in milliseconds."""
        times = sorted(self._pings_s)
        return round(1000 * times[int(0.99 * (len(times) - 1))], 1) if times else None

    def _missed(self, reason: str) -> None:
        self._failures += 1
        self.reason = reason
        if self.state == "healthy" and self._failures >= self._limits.ping_failures:
            self.state = "unhealthy"
            log.error(
                "%s missed %d pings in a row: the platform would replace the instance now. %s",
                self.instance.container.url,
                self._failures,
                reason,
            )

    def _run(self) -> None:
        while not self._stop.wait(self._limits.ping_every_s):
            if not self.round():
                continue
            try:
                self.instance.reconcile(self._limits.ping_s)
            except NoAnswer as error:
                log.warning("GET /models of %s: %s", self.instance.container.url, error)
