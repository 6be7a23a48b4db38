"""Calling an author's code: what it raises comes back as a value, with its cause in the log once.

``call`` is the one function through which authors' code is called, and the one broad ``except`` for it. The log shows
the traceback of each place that fails once a model, one line after that.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from container import log
from container.errors import ServingError
from container.model import blame

_log = log.get(__name__)
#: Exit status of a process whose device answers no more.
POISONED = 70

#: model -> places of its code whose tracebacks are in the log already.
_reported: dict[str, set[object]] = {}
_MAX_REPORTED = 100


def call(verdict: Callable[[BaseException], ServingError], function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what ``function`` returns, or the ServingError that ``verdict`` makes of what it raises."""
    try:
        return function(*arguments)
    except ServingError as error:
        return error
    except (Exception, SystemExit) as error:  # noqa: BLE001 - authors' code may raise anything, and exit
        end_if_poisoned(error)
        failed = verdict(error)
        failed.__cause__ = error
        return failed


def end_if_poisoned(error: BaseException) -> None:
    """End this process if ``error`` has broken its CUDA context, which answers nothing any more."""
    if blame.poisoned(error):
        _log.critical("the CUDA context of this process is broken, so it ends: %s", blame.describe(error))
        os._exit(POISONED)


def log_cause(error: ServingError, name: str, phase: str) -> None:
    """Log the author's exception: with its traceback the first time, in one line when the same place fails again."""
    cause = error.__cause__
    if cause is None or error.code.startswith("request."):  # the caller's mistake, and the caller is told
        return
    place = cause.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = (type(cause), place.tb_frame.f_code.co_filename, place.tb_lineno) if place is not None else None
    seen = _reported.setdefault(name, set())
    again = where in seen
    if len(seen) < _MAX_REPORTED:
        seen.add(where)
    _log.error("failed in %s: %s", phase, error.message, exc_info=None if again else cause)


def forget(name: str) -> None:
    """Log whatever fails in model ``name`` with its traceback again: it is loaded anew, or gone."""
    _reported.pop(name, None)
