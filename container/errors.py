"""Everything that can go wrong, as one tree with stable codes.

    bytes ──decode──> inputs ──predict──> outputs ──encode──> bytes
      │                 │                    │
      BadRequest        ModelFailed          BadAnswer          anything else: Internal
      MediaType         BadInput                                (fixed text out, traceback to the log)

A leaf is one thing that can go wrong. Its ``code`` is what callers, logs and metrics may depend on; the
HTTP status of a code is decided in ``front/errors.py`` and nowhere else. A message says what, which, why and
what to do, and never holds a traceback, a path outside the models folder, or a secret.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Failure(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A ServingError as it travels between processes: text and code, never an object of the other side."""

    code: str
    message: str
    retry_after_s: float | None = None
    status: int | None = None


class ServingError(Exception):
    """Base of every error that a caller may see; the message is written for that caller."""

    code: ClassVar[str] = "server.internal"

    def __init__(self, message: str, *, retry_after_s: float | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.status = status

    def to_failure(self) -> Failure:
        """Return what crosses a process border."""
        return Failure(self.code, self.message, self.retry_after_s, self.status)

    @staticmethod
    def from_failure(failure: Failure) -> ServingError:
        """Return the error of ``failure.code``; a code this build does not know becomes Internal."""
        kind = ERRORS.get(failure.code, Internal)
        return kind(failure.message, retry_after_s=failure.retry_after_s, status=failure.status)


class Internal(ServingError):
    """Something nobody foresaw; the message is fixed, the traceback is in the log."""

    code = "server.internal"
    TEXT: ClassVar[str] = "internal error; the server's log has the details under this request's id"


class Restarting(ServingError):
    """The engine or the process of the model's code has just died and is coming back."""

    code = "server.restarting"


class Draining(ServingError):
    """The server is shutting down and takes no new work."""

    code = "server.draining"


class QueueFull(ServingError):
    """The model's queue, or the byte budget of the server, is full."""

    code = "server.queue_full"


class BadRequest(ServingError):
    """The request cannot be read as what it says it is."""

    code = "request.malformed"


class NoRoute(ServingError):
    """No route has this path."""

    code = "request.no_route"


class BadMethod(ServingError):
    """The route exists, the method does not."""

    code = "request.method"


class BadPageToken(ServingError):
    """``next_page_token`` or ``limit`` is not one that this server gave out."""

    code = "request.page_token"


class TooLarge(ServingError):
    """The body is over the payload limit."""

    code = "request.too_large"


class MediaType(ServingError):
    """The model does not read this Content-Type."""

    code = "request.media_type"


class NotAcceptable(ServingError):
    """The model cannot answer in any type of the Accept header."""

    code = "request.not_acceptable"


class BadInput(ServingError):
    """The body was readable but its values are not what the model takes."""

    code = "request.input"


class BadName(ServingError):
    """A model name outside ``[A-Za-z0-9._-]{1,256}``."""

    code = "model.name"


class ModelNotFound(ServingError):
    """No model of this name is registered."""

    code = "model.not_found"


class ModelExists(ServingError):
    """A model of this name is already registered."""

    code = "model.exists"


class BadModelPath(ServingError):
    """The url of a model does not lie under a folder that models may be loaded from."""

    code = "model.path"


class ModelMissing(ServingError):
    """The url is allowed, but no folder is there."""

    code = "model.missing"


class BadArchive(ServingError):
    """The folder or archive is not a model: layout, manifest or weights are wrong."""

    code = "model.archive"


class LoadFailed(ServingError):
    """The model's own code, or its weights, failed while loading."""

    code = "model.load_failed"


class NeedsOwnProcess(LoadFailed):
    """The model's code looked for a module of its own where only a process of its own has it; tried again in one."""

    code = "model.needs_own_process"


class ModelFailed(ServingError):
    """The model's code raised while answering."""

    code = "model.failed"


class BadAnswer(ServingError):
    """The model's code answered with something that cannot be used, for instance too few answers."""

    code = "model.bad_answer"


class ModelTimeout(ServingError):
    """The answer did not come within the model's ``timeout_s``."""

    code = "model.timeout"


class Quarantined(ServingError):
    """The model killed or hung its process and is kept out until it is loaded anew."""

    code = "model.quarantined"


class LargerThanTier(ServingError):
    """The model is larger than the memory limit itself: no eviction can help."""

    code = "memory.larger_than_limit"


class MemoryBusy(ServingError):
    """The model would fit once work in flight ends, but that did not happen in time."""

    code = "memory.busy"


class NoRoom(ServingError):
    """No plan frees enough bytes, even with every idle model sunk."""

    code = "memory.no_room"


class OutOfMemory(ServingError):
    """A real allocation failed, was retried with idle models sunk, and failed again."""

    code = "memory.exhausted"


def _leaves(kind: type[ServingError]) -> list[type[ServingError]]:
    return [leaf for child in kind.__subclasses__() for leaf in (child, *_leaves(child))]


ERRORS: dict[str, type[ServingError]] = {leaf.code: leaf for leaf in _leaves(ServingError)}
