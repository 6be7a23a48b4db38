"""That no process of ours outlives its parent: the kernel's promise, and what it does not promise."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(parent_pid: int, number: int = signal.SIGKILL) -> None:
    """Ask for signal ``number`` when ``parent_pid`` dies; end the process if that has happened already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent_pid:
        sys.exit("the parent process is gone")


def end_group(leader_pid: int) -> None:
    """Kill what a dead process, the leader of a group, has started and left behind; what left its group goes on."""
    try:
        os.killpg(leader_pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # there is nobody; or nobody who is still ours


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none of them is lost from sight."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
