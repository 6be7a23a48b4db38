"""A process that the supervisor keeps: started when it is due, and later again while the system has none to give."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from container import log
from container.settings import child_environment

_log = log.get(__name__)

#: After a start that failed the next is tried this much later, twice as long each time, up to the second figure.
FIRST_S, MOST_S = 0.25, 4.0


class Kept:
    """One of the supervisor's processes. ``pid`` is 0 while there is none; ``name`` is for the log.

    due_s: when it is to be started, CLOCK_MONOTONIC; None: it is not wanted, or it runs. failures: starts in a row that
    the system refused. born_s: when it was started last, 0 if it never was.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.pid = 0
        self.due_s: float | None = None
        self.born_s = 0.0
        self.failures = 0

    def want(self, after_s: float = 0.0) -> None:
        """Let it be started in ``after_s`` seconds."""
        self.due_s = time.monotonic() + after_s

    def is_due(self) -> bool:
        """Return whether it is to be started now."""
        return self.due_s is not None and self.due_s <= time.monotonic()

    def start(self, command: list[str], pass_fds: tuple[int, ...] = ()) -> bool:
        """Start it in a session of its own, so that a terminal's Ctrl-C reaches only the supervisor.

        Returns False where the system has no process, memory or descriptor for it; then it is due again later.
        """
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, env=child_environment(), pass_fds=pass_fds, start_new_session=True
            )
        except OSError as error:
            self.failed(error)
            return False
        process.returncode = 0  # reaped by the supervisor's own waitid loop; Popen must not look for it
        self.pid, self.born_s, self.due_s, self.failures = process.pid, time.monotonic(), None, 0
        return True

    def failed(self, error: OSError) -> None:
        """Note that it could not be started, and when to try again."""
        wait_s = min(FIRST_S * 2**self.failures, MOST_S)
        self.failures += 1
        self.want(wait_s)
        _log.error("%s cannot be started (%s); trying again in %.2f s", self._name, error.strerror or error, wait_s)

    def ended(self) -> None:
        """Note that it has died and was reaped."""
        self.pid = 0

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to it, or to all of its session's group; nothing if it has none or has just ended."""
        if self.pid:
            send(self.pid, number, group=group)


def send(pid: int, number: int, *, group: bool = False) -> None:
    """Send a signal to ``pid``, or to its group, unless it has just ended by itself."""
    assert pid > 0, "0 would mean our own group"
    try:
        (os.killpg if group else os.kill)(pid, number)
    except ProcessLookupError:
        pass


def how(died: os.waitid_result) -> str:
    """Return how a process ended, in words."""
    if died.si_code == os.CLD_EXITED:
        return f"exit status {died.si_status}"
    return f"killed by {signal.Signals(died.si_status).name}"


def refused(died: os.waitid_result) -> bool:
    """Return whether a process ended because its settings cannot be met, which another try would not change."""
    return died.si_code == os.CLD_EXITED and died.si_status == os.EX_CONFIG


def killed(died: os.waitid_result) -> bool:
    """Return whether SIGKILL ended a process: the kernel's way when a container's memory is full."""
    return died.si_code == os.CLD_KILLED and died.si_status == signal.SIGKILL
