"""The values that travel: what a caller sends, what a model answers.

Both are bytes with a media type. They cross process borders as they are and are decoded once, next to the
model (``model/pipeline``).
"""

from __future__ import annotations

import msgspec

JSON = "application/json"


class Payload(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """A body with its media types.

    body: the bytes as they came or go.
    content_type: media type of ``body``, with its parameters, as the caller wrote it.
    accept: the caller's Accept header ("" = anything); of no meaning on an answer.
    request_id: ``X-Amzn-SageMaker-Inference-Id``, echoed and written into log lines.
    attributes: ``X-Amzn-SageMaker-Custom-Attributes`` as sent; on an answer, what the model sets.
    headers: further request headers that authors' contexts show; on an answer, headers to add.
    status: HTTP status an author's code asks for on an answer; 0 = the usual one.
    """

    body: bytes
    content_type: str = JSON
    accept: str = ""
    request_id: str = ""
    attributes: str = ""
    headers: dict[str, str] = {}
    status: int = 0
