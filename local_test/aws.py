"""What the runtime API looks like from outside: which headers pass, and errors in AWS's own shape.

Pure. Sources: the service model of botocore's sagemaker-runtime for names and statuses; the wording of messages follows
what users of the real service quote in public issues (named at each function). A client recognises an error by the
header ``x-amzn-ErrorType`` and reads its members from the JSON body, with a capital ``Message``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

ACCOUNT = "123456789012"
REGION = "us-east-1"
VARIANT = "AllTraffic"

#: Headers of a call that reach the container; the platform drops every other one.
FORWARDED = (
    "Content-Type",
    "Accept",
    "X-Amzn-SageMaker-Custom-Attributes",
    "X-Amzn-SageMaker-Target-Model",
    "X-Amzn-SageMaker-Inference-Id",
    "X-Amzn-SageMaker-Session-Id",
)
#: Headers of the container's answer that reach the caller.
RETURNED = (
    "Content-Type",
    "X-Amzn-SageMaker-Custom-Attributes",
    "X-Amzn-SageMaker-Inference-Id",
    "X-Amzn-SageMaker-New-Session-Id",
    "X-Amzn-SageMaker-Closed-Session-Id",
)
#: botocore's limits, in characters; the client does not check them itself.
LONGEST = {
    "X-Amzn-SageMaker-Custom-Attributes": 1024,
    "X-Amzn-SageMaker-Target-Model": 1024,
    "X-Amzn-SageMaker-Inference-Id": 64,
    "Content-Type": 1024,
    "Accept": 1024,
}
_MESSAGE_LIMIT = 2048  # characters of Message in the service model


@dataclass(frozen=True, slots=True)
class Place:
    """Where an error happened: what its message and its LogStreamArn name."""

    endpoint: str
    region: str = REGION
    account: str = ACCOUNT


class Refused(Exception):
    """A call that ends in an AWS error. ``fields`` are the members of its JSON body, ``Message`` among them."""

    def __init__(self, status: int, code: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.fields = {"Message": message, **fields}

    def body(self) -> bytes:
        """Return the JSON body."""
        return json.dumps(self.fields).encode()

    def headers(self) -> dict[str, str]:
        """Return the headers by which a client recognises the error."""
        return {"x-amzn-ErrorType": self.code, "Content-Type": "application/json"}


class Headers(Protocol):
    """Headers of any library, whose lookup does not mind the case."""

    def get(self, key: str, /) -> str | None:
        """Return the value of ``key``, or None."""


def pick(headers: Headers, names: tuple[str, ...]) -> dict[str, str]:
    """Return those of ``headers`` that are in ``names``, spelled as there."""
    found = ((name, headers.get(name)) for name in names)
    return {name: value for name, value in found if value is not None}


def check_lengths(headers: Mapping[str, str]) -> None:
    """Raise a ValidationError for a header over the service's limit."""
    for name, longest in LONGEST.items():
        value = headers.get(name)
        if value is not None and len(value) > longest:
            raise Refused(
                400,
                "ValidationError",
                f"1 validation error detected: Value at '{name}' failed to satisfy constraint: "
                f"Member must have length less than or equal to {longest}",
            )


def endpoint_not_found(place: Place, name: str) -> Refused:
    """amazon-sagemaker-examples issue 293."""
    return Refused(400, "ValidationError", f"Endpoint {name} of account {place.account} not found.")


def target_model_missing(request_id: str) -> Refused:
    """sagemaker-tensorflow-serving-container issue 166."""
    return Refused(400, "ValidationError", f"Request {request_id} is missing a target model header")


def target_model_not_supported(place: Place) -> Refused:
    """amazon-sagemaker-examples issues 1026 and 1216."""
    return Refused(
        400,
        "ValidationError",
        f"Endpoint {place.endpoint} is not a multi-model endpoint and does not support target model header.",
        ErrorCode="TARGET_MODEL_HEADER_NOT_SUPPORTED",
    )


def artifact_missing(prefix: str, key: str) -> Refused:
    """The wording follows the one for single models (sagemaker-python-sdk threads); that of MME is not known to us."""
    return Refused(
        400,
        "ValidationError",
        f"Failed to download model data (prefix: {prefix}, key: {key}). "
        "Please ensure that there is an object located at the URL and that its name ends in .tar.gz.",
    )


def artifact_broken(key: str, reason: str) -> Refused:
    """An object that is there but is not a usable tar.gz; the wording of the real service is not known to us."""
    return Refused(400, "ValidationError", f"Failed to extract model data archive {key}: {reason}")


def model_not_ready(key: str, waited_s: float) -> Refused:
    """Loading goes on after the caller's time is up; a client in botocore's legacy retry mode calls again."""
    return Refused(
        429,
        "ModelNotReadyException",
        f"Model {key} is not ready for inference after {waited_s:g} s; loading goes on. Please try again later.",
    )


def body_too_long(limit_bytes: int) -> Refused:
    """sagemaker-python-sdk issue 171; the client shows the bare status as the code."""
    return Refused(413, "413", f"HTTP content length exceeded {limit_bytes} bytes.")


def not_in_service(reason: str) -> Refused:
    """No healthy container is left behind the endpoint."""
    return Refused(503, "ServiceUnavailable", f"The endpoint has no healthy container: {reason}")


def model_error(place: Place, status: int, body: bytes) -> Refused:
    """The container answered ``status`` >= 400 (amazon-sagemaker-examples issues 1809 and 4324).

    A body that is no text, or too long, is left out of the message in the service's own words.
    """
    side = "client" if status < 500 else "server"
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = ""
    told = f'with message "{text}"' if text and len(text) <= _MESSAGE_LIMIT // 2 else _UNREADABLE
    return _failed(place, status, text, f"Received {side} error ({status}) from primary {told}")


def no_answer(place: Place, reason: str) -> Refused:
    """The container gave no HTTP answer: too late, or the connection broke. OriginalStatusCode is 0."""
    return _failed(place, 0, reason, f'Received server error (0) from primary with message "{reason}"')


TIMED_OUT = (
    "Your invocation timed out while waiting for a response from container primary. Review the latency metrics for "
    "each container in Amazon CloudWatch, resolve the issue, and try again."
)
_UNREADABLE = "and could not load the entire response body"


def _failed(place: Place, status: int, original: str, text: str) -> Refused:
    group = f"/aws/sagemaker/Endpoints/{place.endpoint}"
    console = f"https://{place.region}.console.aws.amazon.com/cloudwatch/home?region={place.region}"
    message = f"{text}. See {console}#logEventViewer:group={group} in account {place.account} for more information."
    extra = {"ErrorCode": "INTERNAL_FAILURE_FROM_MODEL"} if status >= 500 else {}
    return Refused(
        424,
        "ModelError",
        message,
        OriginalStatusCode=status,
        OriginalMessage=original[:_MESSAGE_LIMIT],
        LogStreamArn=f"arn:aws:logs:{place.region}:{place.account}:log-group:{group}",
        **extra,
    )
