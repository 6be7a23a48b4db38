"""Log lines: one JSON object a line on stderr, so that CloudWatch and a terminal can both be searched.

What authors and callers write is in them as text: nothing of it breaks a line or acts on a terminal.

``bind`` puts the model's name and the request's id on every line that is written while it is active, author's
``print`` and ``logging`` included (``host/child`` routes those here).
"""

from __future__ import annotations

import contextvars
import json
import logging
import re
import sys
import time
from typing import TextIO

#: Control characters but tab and line end, and marks that break lines or turn the direction of what follows.
_ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

_bound: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("berth_log", default={})  # noqa: B039


class JsonFormatter(logging.Formatter):
    """One record as one JSON line; a traceback is one field, so a line stays a line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process_name = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end."""
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self.process_name,
            "logger": record.name,
            "message": record.getMessage(),
            **_bound.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return visible(json.dumps(line, ensure_ascii=False, default=str))


def configure(process: str, level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logging of this process to ``stream`` (stderr) as JSON lines marked with ``process``."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def get(name: str) -> logging.Logger:
    """Return the logger of a module; call with ``__name__``."""
    return logging.getLogger(name)


def visible(text: str) -> str:
    """Return ``text``, which a stranger may have written, with what would act on a terminal spelt out."""
    return _ACTS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class bind:
    """``with bind(model=name):`` puts the fields on every line logged inside the block by this thread or task.

    Entered several times a request, so it is no generator: those cost three times as much.
    """

    __slots__ = ("_fields", "_token")

    def __init__(self, **fields: str) -> None:
        self._fields = fields

    def __enter__(self) -> None:
        self._token = _bound.set({**_bound.get(), **self._fields})

    def __exit__(self, *raised: object) -> None:
        _bound.reset(self._token)
