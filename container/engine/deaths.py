"""What the death of a host child is called, and what it means for whoever was inside; nothing here acts on it."""

from __future__ import annotations

import signal
import time

from container.errors import LoadFailed, OutOfMemory, ServingError
from container.model import watch


def how(status: int) -> str:
    """Return how a process ended, in words; ``status`` as asyncio gives it (negative: the signal)."""
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def out_of_memory(inside: list[watch.Inside], status: int) -> bool:
    """Return whether a process was ended by a SIGKILL that was not ours: the kernel's, when memory is short.

    137 is how a shell, or a library that watches a process of its own, passes such a death on.
    """
    ours = any(each.deadline_s < time.monotonic() for each in inside)
    return status in (-signal.SIGKILL, 128 + signal.SIGKILL) and not ours


def while_answering(model: str) -> ServingError:
    """Return what callers of ``model`` are told when its process was killed from outside."""
    return OutOfMemory(
        f"the process that ran model {model!r} was killed from outside, most likely out of memory; "
        "send less at once, or give the container more memory"
    )


def while_loading(inside: watch.Inside, status: int) -> ServingError:
    """Return what a process's death means for the model that was being loaded in it."""
    if inside.deadline_s < time.monotonic():
        return LoadFailed(f"model {inside.model!r} did not finish loading in time and its process was ended")
    if out_of_memory([inside], status):
        return OutOfMemory(
            f"the process that was loading model {inside.model!r} was killed from outside, most likely out of memory"
        )
    return LoadFailed(f"model {inside.model!r} ended its process while loading ({how(status)})")
