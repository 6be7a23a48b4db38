"""Where the JSON of a KServe v2 body ends and its binary tensors begin. Pure, without numpy: the front reads it, too.

    Content-Type: application/vnd.sagemaker-triton.binary+json;json-header-size=215     what SageMaker lets through
    Inference-Header-Content-Length: 215                                               the same on plain HTTP

A size of 0 says that the whole body is the model's only input. Source: Triton's extension_binary_data.md and
sagemaker_server.cc (contract.md 3a), whose laxness about sizes was its own source of faults; here none is believed.
"""

from __future__ import annotations

import re

from container.errors import BadRequest

#: What the front calls a JSON body that came on /v2, so that models of every kind know it for what it is.
JSON_TYPE = "application/vnd.kserve.v2+json"
#: A body with binary tensors, in both directions; its one parameter is the size of the JSON part.
BINARY_TYPE = "application/vnd.sagemaker-triton.binary+json"
PARAMETER = "json-header-size"
HEADER = "Inference-Header-Content-Length"

_SIZE = re.compile(r"[0-9]{1,15}")


def size_of(text: str, what: str) -> int:
    """Return the size in bytes that ``text`` gives. Raises BadRequest naming ``what``; a list is no size either."""
    if _SIZE.fullmatch(text.strip()) is None:
        raise BadRequest(f"{what} is {text[:40]!r}; it must be one whole number of bytes, 0 or more")
    return int(text.strip())


def content_type(header_bytes: int) -> str:
    """Return the media type of a body whose JSON part has ``header_bytes`` bytes."""
    return f"{BINARY_TYPE};{PARAMETER}={header_bytes}"


def is_binary(content_type: str) -> bool:
    """Say whether a body of this Content-Type has binary tensors behind its JSON, whatever the parameters."""
    return content_type.partition(";")[0].strip().lower() == BINARY_TYPE


def header_size(content_type: str) -> int | None:
    """Return the size of the JSON part, None if ``content_type`` is another.

    Raises BadRequest when the size is missing, malformed or given twice; ``media.parse`` would keep the first of two.
    """
    if not is_binary(content_type):
        return None
    given = [part.partition("=") for part in content_type.split(";")[1:]]
    sizes = [value for name, _, value in given if name.strip().lower() == PARAMETER]
    if len(sizes) != 1:
        raise BadRequest(f"{BINARY_TYPE} needs ;{PARAMETER}=N with the size of its JSON once, not {len(sizes)} times")
    return size_of(sizes[0], PARAMETER)
