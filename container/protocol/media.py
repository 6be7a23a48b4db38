"""Media types: reading a Content-Type, and choosing an answer's type by an Accept header (RFC 9110, 8.3 and 12.5.1).

Pure. Both are cached, because a caller sends the same header on every request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from container.payload import JSON

_WEIGHT = re.compile(r"[01](\.\d*)?|\.\d+")


class Media(NamedTuple):
    """A media type without its parameters, in lower case, and the parameters (names in lower case)."""

    type: str
    parameters: Mapping[str, str]


class _Range(NamedTuple):
    """One member of an Accept header: what it matches, how much it is wanted, its place."""

    type: str
    weight: float
    place: int

    @property
    def precision(self) -> int:
        """0 for ``*/*``, 1 for ``text/*``, 2 for a type spelt out."""
        return 0 if self.type == "*/*" else 1 if self.type.endswith("/*") else 2

    def covers(self, media: str) -> bool:
        """Return whether a media type, in lower case and without parameters, falls under this range."""
        return self.type in (media, "*/*") or (self.type.endswith("/*") and media.startswith(self.type[:-1]))


def _split(text: str, mark: str) -> list[str]:
    """Cut ``text`` at ``mark``, not inside quotes; one pass, for a regex with nested quotes takes a second for 8 KB."""
    pieces = [text]
    if '"' not in text:
        pieces = text.split(mark)
    elif mark in text:
        pieces, start, quoted, escaped = [], 0, False, False
        for at, letter in enumerate(text):
            if escaped:
                escaped = False
            elif letter == "\\":
                escaped = quoted
            elif letter == '"':
                quoted = not quoted
            elif letter == mark and not quoted:
                pieces.append(text[start:at])
                start = at + 1
        pieces.append(text[start:])
    return [piece.strip() for piece in pieces if piece.strip()]


def _unquote(value: str) -> str:
    if not value.startswith('"'):
        return value
    return re.sub(r"\\(.)", r"\1", value[1:].removesuffix('"'))


@lru_cache(maxsize=512)
def parse(text: str) -> Media:
    """Return the type and parameters of a Content-Type; nothing there means JSON. Never raises.

    What is no media type at all comes back as it is, in lower case, for the decoder to refuse by name.
    """
    head, *rest = _split(text, ";") or [JSON]
    parameters: dict[str, str] = {}
    for part in rest:
        name, equals, value = part.partition("=")
        if equals:
            parameters.setdefault(name.strip().lower(), _unquote(value.strip()))
    return Media(head.lower(), MappingProxyType(parameters))


def _range(part: str, place: int) -> _Range:
    media = parse(part)
    weight = media.parameters.get("q", "1")
    # A q that is no number is a mistake of the caller's client, not a wish to be refused.
    return _Range(
        "*/*" if media.type == "*" else media.type,
        min(1.0, float(weight)) if _WEIGHT.fullmatch(weight) else 1.0,
        place,
    )


@lru_cache(maxsize=512)
def _rank(accept: str, offered: tuple[str, ...], default: str) -> tuple[str, ...]:
    first = sorted(offered, key=lambda media: media != default)
    ranges = [_range(part, place) for place, part in enumerate(_split(accept, ","))] or [_range("*/*", 0)]
    wanted: list[tuple[tuple[float, int, int], str]] = []
    for media in first:
        covering = [each for each in ranges if each.covers(media)]
        if covering:
            best = max(covering, key=lambda each: (each.precision, each.weight))
            if best.weight > 0:
                wanted.append(((-best.weight, -best.precision, best.place), media))
    return tuple(media for _, media in sorted(wanted, key=lambda pair: pair[0]))


def rank(accept: str, offered: Sequence[str], default: str = JSON) -> tuple[str, ...]:
    """Return those of ``offered`` that ``accept`` allows, best first; empty when it allows none.

    The highest q wins, then the more precise range, then the order of the header; what one range covers comes with
    ``default`` first and then in the order offered. "" allows everything.
    """
    return _rank(accept, tuple(offered), default)
