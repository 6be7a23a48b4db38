"""The function-style handler service that every worker of multi-model-server runs: a thin client of the engine.

    handle(None, context)   once, at load: attach the model, which loads it in the engine
    handle(data, context)   each batch of Java's: forward it, return what the engine answers, errors included

Java writes the status, the headers and the body that are set here, so a caller sees the same answers as at the other
door. What it can not be told at load is the reason: it answers 507 to a MemoryError and 500 to anything else
(docs/moving-in/multi-model-server.md lists such differences). Imports no torch and no Flask.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec

from container import log
from container.errors import LargerThanTier, NoRoom, OutOfMemory, ServingError
from container.front import errors
from container.front.headers import answer_of, fields_of, payload_of, request_id_of
from container.mms.link import Attachment, Link
from container.payload import Payload

_log = log.get(__name__)
#: The platform waits this long for an answer (contract.md section 1.2); a model's own timeout_s is shorter.
LIMIT_S = 60.0
_WRITTEN_BY_JAVA = ("content-length", "content-type")


class Door(msgspec.Struct, frozen=True):
    """What a worker must know of its server; ``mms/door`` leaves it in Java's folder for temporary files.

    engine: path of the engine's Unix socket. accept: the type of answers when Accept is missing.
    """

    engine: str
    accept: str

    @staticmethod
    def read(tmp_dir: Path) -> Door:
        """Return the Door that ``write`` left in ``tmp_dir``."""
        return msgspec.json.decode((tmp_dir / "door.json").read_bytes(), type=Door)

    def write(self, tmp_dir: Path) -> None:
        """Leave this for the workers."""
        (tmp_dir / "door.json").write_bytes(msgspec.json.encode(self))


#: Set by ``mms/worker`` before the first call.
door: Door | None = None
_link: Link | None = None


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[bytes] | None:
    """Attach the model (``data`` None) or answer a batch.

    Raises MemoryError for a model that has no room, RuntimeError for one that does not load for another reason.
    """
    if data is None:
        _attach(context)
        return None
    return _answer(data, context)


def _attach(context: Any) -> None:
    global _link
    assert door is not None, "the worker has set it"
    held = Attachment(context.model_name, context.system_properties["model_dir"])
    link = Link(door.engine, f"mms-{os.getpid()}", held)
    try:
        link.connect()
    except (LargerThanTier, NoRoom, OutOfMemory) as error:
        _log.error("no room for %s: %s: %s", held.name, error.code, error)
        raise MemoryError(error.message) from None
    except ServingError as error:
        raise RuntimeError(f"{held.name} does not load: {error.code}: {error}") from None
    _link = link


def _answer(data: list[dict[str, Any]], context: Any) -> list[bytes]:
    assert door is not None, "the worker has set it"
    assert _link is not None, "Java loads before it invokes"
    context.metrics = None  # multi-model-server would print a line for every request, which nobody reads
    ids = [b""] * len(data)
    payloads = []
    for index, parameters in enumerate(data):
        fields = _fields(context.get_all_request_header(index))
        ids[index] = request_id_of(fields) or str(context.get_request_id(index)).encode()
        # A form has no "body": Java has taken it apart. The engine refuses it by its content type.
        body = bytes(parameters.get("body", b""))
        payloads.append(payload_of(body, fields, ids[index], door.accept))
    results = _link.invoke(context.model_name, payloads, time.monotonic() + LIMIT_S)
    bodies = []
    for index, (result, request_id) in enumerate(zip(results, ids, strict=True)):
        if isinstance(result, Payload):
            answer = answer_of(result, request_id)
        else:
            answer = errors.answer(ServingError.from_failure(result), request_id)
        _tell(context, index, answer)
        bodies.append(answer.body)
    return bodies


def _fields(headers: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Request headers as the front has them; multi-model-server mixes one dict for each body part among them."""
    texts = [(name, value) for name, value in headers.items() if isinstance(value, str)]
    return fields_of([(name.lower().encode(), value.encode("utf-8", "replace")) for name, value in texts])


def _tell(context: Any, index: int, answer: errors.Answer) -> None:
    """Set status and headers of one answer."""
    try:
        phrase = HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = ""
    context.set_response_status(answer.status, phrase, index)
    for name, value in answer.headers:
        text = value.decode("latin-1")
        if name.lower() == b"content-type":
            context.set_response_content_type(index, text)
        elif name.lower().decode() not in _WRITTEN_BY_JAVA:
            context.set_response_header(index, name.decode("latin-1"), text)
