"""Generated text told while it grows: which pieces are safe to tell, and how they are written.

    text/event-stream     data:{"index": 3, "token": {"id": 262, "text": " the", "special": false},
                                "generated_text": null, "details": null}      as text-generation-inference has it
    application/jsonlines  the same objects, one a line, as DJL has it
    text/plain             the text alone

The last event holds ``generated_text``, the whole answer. A piece may be of several tokens: half a character is not
told, nor what may turn out to be the beginning of a ``stop`` text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from container.payload import JSON, Payload
from container.protocol import media

EVENTS = "text/event-stream"
LINES = "application/jsonlines"
TEXT = "text/plain"


def form(asked: bool | None, accept: str) -> str:
    """Return how a request wants its text told while it grows, "" if not at all.

    asked: the request's ``stream``, None if it has none: then only an Accept that likes EVENTS best asks for it.
    """
    best = next(iter(media.rank(accept, (JSON, TEXT, EVENTS, LINES))), JSON)
    if asked is None:
        return best if best in (EVENTS, LINES) else ""
    return (EVENTS if best == JSON else best) if asked else ""


class Telling:
    """What one caller has been told of one growing text. decode: tokens to text. kind: one of the three above."""

    def __init__(self, kind: str, decode: Callable[[list[int]], str], stops: Sequence[str]) -> None:
        self._kind = kind
        self._decode = decode
        self._stops = stops
        self._known = ""
        self._told = 0
        # Tokens before ``_start`` are behind us; those up to ``_upto`` are in ``_known`` and give the next its context.
        self._start = self._upto = 0

    def piece(self, tokens: list[int]) -> Payload | None:
        """Return what is new in ``tokens``, all those chosen so far; None if nothing is safe to tell yet."""
        before = self._decode(tokens[self._start : self._upto])
        now = self._decode(tokens[self._start :])
        if len(now) <= len(before) or now.endswith("\ufffd"):  # nothing, or half a character
            return None
        self._known += now[len(before) :]
        self._start, self._upto = self._upto, len(tokens)
        text = self._known[self._told : len(self._known) - self._held()]
        if not text:
            return None
        self._told += len(text)
        return self._written(tokens, text, None)

    def last(self, tokens: list[int], added: str, whole: str) -> Payload:
        """Return the end: what is left of ``added``, the text without prompt; ``whole`` is the answer."""
        return self._written(tokens, added[self._told :], whole)

    def _held(self) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._known)), longest, -1):
                if self._known.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _written(self, tokens: list[int], text: str, whole: str | None) -> Payload:
        if self._kind == TEXT:
            return Payload(text.encode(), f"{TEXT}; charset=utf-8")
        token = {"id": tokens[-1] if tokens else None, "text": text, "special": False}
        event: dict[str, Any] = {"index": len(tokens), "token": token, "generated_text": whole, "details": None}
        body = msgspec.json.encode(event)
        return Payload(b"data:%s\n\n" % body if self._kind == EVENTS else body + b"\n", self._kind)
