"""Request headers -> Payload, and Payload -> response headers. Pure.

Whatever a model's code sets goes out sanitised: no CR or LF, nothing that frames the message or belongs to the
connection. Does not cover: header syntax of requests, which gunicorn's parser has checked.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, NamedTuple

from container.front.errors import Answer, Headers
from container.payload import JSON, Payload

if TYPE_CHECKING:  # it brings asyncio, which the workers of the mms door do without
    from container.wire.stream import Stream

REQUEST_ID = b"x-amzn-sagemaker-inference-id"
_ATTRIBUTES = b"x-amzn-sagemaker-custom-attributes"
_ACCEPT = b"x-amzn-sagemaker-accept"
#: Only written into the log: a model is named by the path alone (contract.md section 2.2).
TARGET_MODEL = b"x-amzn-sagemaker-target-model"
_PLATFORM = b"x-amzn-sagemaker-"
_TOLD_APART = frozenset({REQUEST_ID, _ATTRIBUTES, _ACCEPT})

_MAX_ID_BYTES = 256
_ANY = frozenset({b"*/*", b""})

#: Set by gunicorn or by us, or meant for one connection only (RFC 9110 section 7.6.1).
_NOT_THE_MODELS = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"}
    | {"transfer-encoding", "upgrade", "content-length", "content-type", "date", "server"}
    | {"x-amzn-sagemaker-inference-id"}
)
_token_ok = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}").fullmatch
_value_ok = re.compile(r"[\t\x20-\x7e\x80-\xff]*").fullmatch


class Streamed(NamedTuple):
    """An answer that goes out in pieces as they come."""

    status: int
    headers: Headers
    stream: Stream


def fields_of(headers: Headers) -> dict[bytes, bytes]:
    """Return the request's headers by lower-case name; what comes twice is joined with commas (RFC 9110 5.2)."""
    fields = dict(headers)
    if len(fields) != len(headers):
        fields = {}
        for name, value in headers:
            fields[name] = fields[name] + b", " + value if name in fields else value
    return fields


def request_id_of(fields: dict[bytes, bytes]) -> bytes:
    """Return the caller's id of this request, b"" if it gave none."""
    return fields.get(REQUEST_ID, b"")[:_MAX_ID_BYTES]


def payload_of(body: bytes, fields: dict[bytes, bytes], request_id: bytes, default_accept: str) -> Payload:
    """Return the Payload of a request; ``default_accept`` stands in for a missing Accept and for ``*/*``."""
    accept = fields.get(b"accept", b"")
    if accept in _ANY:
        accept = fields.get(_ACCEPT, b"")
    content_type = fields.get(b"content-type")
    return Payload(
        body,
        content_type.decode("latin-1") if content_type else JSON,
        default_accept if accept in _ANY else accept.decode("latin-1"),
        request_id.decode("latin-1"),
        fields.get(_ATTRIBUTES, b"").decode("latin-1"),
        {
            name.decode("latin-1"): fields[name].decode("latin-1")
            for name in fields
            if name.startswith(_PLATFORM) and name not in _TOLD_APART
        },
    )


def answer_of(payload: Payload, request_id: bytes) -> Answer:
    """Return the answer that a model's Payload stands for."""
    body = payload.body
    status = payload.status
    if not 200 <= status <= 599:
        status = 200
    elif status in (204, 304):
        body = b""
    headers = [
        (b"content-type", _media_type(payload.content_type)),
        (b"content-length", b"%d" % len(body)),
        (REQUEST_ID, request_id),
    ]
    return Answer(status, _with_the_models(headers, payload), body)


def streamed_of(stream: Stream, request_id: bytes) -> Streamed:
    """Return the answer whose pieces are in ``stream``; without Content-Length it goes out in chunks."""
    head = stream.head
    headers = [(b"content-type", _media_type(head.content_type)), (REQUEST_ID, request_id)]
    if head.content_type.startswith("text/event-stream"):
        headers.append((b"cache-control", b"no-cache"))
    return Streamed(head.status if 200 <= head.status <= 299 else 200, _with_the_models(headers, head), stream)


def _with_the_models(headers: Headers, payload: Payload) -> Headers:
    """Return ``headers`` with those that the model's code sets."""
    if payload.attributes:
        headers.append((_ATTRIBUTES, _clean(payload.attributes)))
    for name, value in payload.headers.items():
        if _token_ok(name) and name.lower() not in _NOT_THE_MODELS:
            headers.append((name.encode("latin-1"), _clean(value)))
    return headers


@functools.lru_cache(maxsize=256)
def _media_type(text: str) -> bytes:
    return _clean(text) or b"application/octet-stream"


def _clean(value: str) -> bytes:
    """Return a header value: as it is, or with every character that HTTP does not allow turned into a space."""
    if _value_ok(value) is None:
        value = "".join(char if _value_ok(char) else " " for char in value)
    return value.strip().encode("latin-1")
