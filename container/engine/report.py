"""What a trial of one model found (``engine/trial``), and whether two answers are the same; data and pure functions."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from container.payload import JSON, Payload

#: Batches and another place in memory may change the last digits of what a network computes.
RELATIVE = 1e-4
ABSOLUTE = 1e-5


class Request(msgspec.Struct, frozen=True):
    """What is to be tried: the model in ``folder``, under ``name``. payload None: its own warm-up or example.

    ask False: load only. limit_s: for the load.
    """

    name: str
    folder: str
    payload: Payload | None = None
    ask: bool = True
    limit_s: float = 300.0


class Fault(msgspec.Struct, frozen=True):
    """Why the model would not serve. phase: load, answer, batch, sink, unload. message: one sentence with the mend."""

    phase: str
    code: str
    message: str


class Phase(msgspec.Struct, frozen=True, tag="phase"):
    """The trial is at ``name`` now."""

    name: str


class Report(msgspec.Struct, tag="report"):
    """What was found; times in milliseconds, -1 = not measured.

    place: engine, guests or own. bytes: measured, by tier. request: where the request came from: "given", "warmup",
    "example", "" = there was none. varies: the same request was answered differently each time.
    """

    kind: str = ""
    task: str = ""
    place: str = ""
    device: str = ""
    timeout_s: float = 0.0
    files_bytes: int = 0
    bytes: dict[str, int] = {}
    load_ms: float = -1
    times_ms: dict[str, float] = {}
    request: str = ""
    first_ms: float = -1
    warm_ms: float = -1
    rise_ms: float = -1
    answer_type: str = ""
    answer_start: str = ""
    answer_bytes: int = 0
    varies: bool = False
    freed_bytes: int = 0
    fault: Fault | None = None
    notes: list[str] = []


Event = Phase | Report
EVENTS: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def same(one: Payload, other: Payload) -> bool:
    """Return whether two answers say the same: byte by byte, or as JSON up to the last digits of numbers."""
    if one.body == other.body:
        return True
    if not one.content_type.startswith(JSON) or not other.content_type.startswith(JSON):
        return False
    try:
        return close(msgspec.json.decode(one.body), msgspec.json.decode(other.body))
    except msgspec.DecodeError:
        return False


def close(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal but for the last digits of their numbers."""
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(value, other[key]) for key, value in one.items())
    return bool(one == other)
