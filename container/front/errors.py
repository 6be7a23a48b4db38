"""The only table from an error's code to an HTTP status, and the body that callers get.

Bodies are those of multi-model-server (``code``, ``type``, ``message``) plus ``reason``, our stable dotted code.
Pure. Does not cover: who raises what (``container/errors.py``), malformed HTTP (``front/worker.py``).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from container.errors import Internal, ServingError

#: The platform shows callers about this much of an error's text; the rest belongs into the log.
MAX_MESSAGE_CHARS = 2048

Headers = list[tuple[bytes, bytes]]


class Answer(NamedTuple):
    """What goes back: status, headers with Content-Length, body."""

    status: int
    headers: Headers
    body: bytes


class Row(NamedTuple):
    """How one error is told. ``retry_after_s``: seconds a caller is told to wait if the error names none."""

    status: int
    type: str
    retry_after_s: float | None = None


TABLE: dict[str, Row] = {
    "server.internal": Row(500, "InternalServerException"),
    "server.restarting": Row(503, "ServiceUnavailableException", 1),
    "server.draining": Row(503, "ServiceUnavailableException", 5),
    "server.queue_full": Row(503, "ServiceUnavailableException", 1),
    "request.malformed": Row(400, "BadRequestException"),
    "request.no_route": Row(404, "ResourceNotFoundException"),
    "request.method": Row(405, "MethodNotAllowedException"),
    "request.page_token": Row(400, "BadRequestException"),
    "request.too_large": Row(413, "RequestEntityTooLargeException"),
    "request.media_type": Row(415, "UnsupportedMediaTypeException"),
    "request.not_acceptable": Row(406, "NotAcceptableException"),
    "request.input": Row(400, "BadRequestException"),
    "model.name": Row(400, "BadRequestException"),
    "model.not_found": Row(404, "ModelNotFoundException"),
    "model.exists": Row(409, "ConflictStatusException"),
    "model.path": Row(400, "BadRequestException"),
    "model.missing": Row(404, "ModelNotFoundException"),
    "model.archive": Row(400, "InvalidModelException"),
    "model.load_failed": Row(500, "InternalServerException"),
    "model.needs_own_process": Row(500, "InternalServerException"),
    "model.failed": Row(500, "InternalServerException"),
    "model.bad_answer": Row(500, "InternalServerException"),
    "model.timeout": Row(504, "RequestTimeoutException"),
    "model.quarantined": Row(503, "ServiceUnavailableException"),
    "memory.larger_than_limit": Row(400, "BadRequestException"),
    "memory.busy": Row(503, "ServiceUnavailableException", 1),
    "memory.no_room": Row(507, "InsufficientMemoryException"),
    "memory.exhausted": Row(507, "InsufficientMemoryException"),
}


def row_of(error: ServingError) -> Row:
    """Return the table's row for ``error``; a code that has none counts as server.internal."""
    return TABLE.get(error.code, TABLE[Internal.code])


def status_of(error: ServingError) -> int:
    """Return the HTTP status of ``error``: the author's own if it is 400..599, else the table's."""
    if error.status is not None and 400 <= error.status <= 599:
        return error.status
    return row_of(error).status


def answer(error: ServingError, request_id: bytes = b"") -> Answer:
    """Return the answer for ``error``; ``request_id`` is echoed when there is one."""
    row = row_of(error)
    status = status_of(error)
    fields = {"code": status, "type": row.type, "message": _capped(error.message), "reason": error.code}
    body = msgspec.json.encode(fields)
    headers: Headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if request_id:
        headers.append((b"x-amzn-sagemaker-inference-id", request_id))
    wait_s = error.retry_after_s if error.retry_after_s is not None else row.retry_after_s
    if wait_s is not None and status in (429, 503):
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(wait_s))))
    return Answer(status, headers, body)


def v2_answer(error: ServingError, request_id: bytes = b"") -> Answer:
    """Return the answer for ``error`` on /v2: the same status and headers, the body as that protocol has it."""
    status, headers, _ = answer(error, request_id)
    body = msgspec.json.encode({"error": _capped(error.message), "reason": error.code})
    return Answer(
        status, [(b"content-length", b"%d" % len(body)) if n == b"content-length" else (n, v) for n, v in headers], body
    )


def _capped(message: str) -> str:
    """Return ``message`` cut to the cap; lone surrogates, which no JSON can carry, are replaced."""
    text = message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 3] + "..."
    return text.encode("utf-8", "replace").decode("utf-8")
