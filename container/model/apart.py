"""Whether an error means that an archive needs a process of its own: one of its modules was not found among others'.

In a process of its own bare names are found on every thread and at any time (``model/imports``), which is what pickles
of the archive's classes need, read after the load or on a thread of the author's.
"""

from __future__ import annotations

import traceback

from container.errors import NeedsOwnProcess, ServingError
from container.model import imports
from container.model.imports import Namespace


def judge(error: ServingError, namespace: Namespace | None) -> ServingError:
    """Return ``error``, or that a process of its own would help. namespace: of the model; None: as the frames say."""
    cause = error.__cause__
    if not isinstance(cause, ModuleNotFoundError) or imports.alone():
        return error
    homes = [namespace] if namespace is not None else _homes(cause)
    if not any(home.lacks(cause.name) for home in homes):
        return error
    apart = NeedsOwnProcess(f"{error.message}; {cause.name} is in code/, where only this archive's code finds it")
    apart.__cause__ = cause
    return apart


def _homes(cause: BaseException) -> list[Namespace]:
    """Return the archives whose code ``cause`` went through."""
    found = (imports.home_of(frame.f_globals) for frame, _ in traceback.walk_tb(cause.__traceback__))
    return [home for home in found if home is not None]
