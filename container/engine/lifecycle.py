"""Is there a model, may it be called, where do its bytes lie: two axes, two tables. Pure.

A state and an event give the next state, or ``InvalidTransition`` with the last steps of that model. The engine is the
only one that feeds events; what it does on an arrow (reserve, open a file, answer callers) is not decided here.

**Life** - may it be called?

    ABSENT ──load──> LOADING ──loaded──> SIZING ──measured──> READY ──unload──> DRAINING ──idle, expired──> LEAVING
                        │ failed           │ failed            │ quarantine        ▲                          │ gone
                        └────> FAILED <────┘                   └──> QUARANTINED ───┘ unload                   └─> ABSENT
                                  └──gone──> ABSENT

**Residency** - on which tier are its bytes? (HOST exists only where pinned RAM lies under a GPU.)

    DISK ──rise──> RISING ──at_device──> DEVICE ──sink──> SINKING ──at_disk──> DISK
                     │ failed, sink                          ▲ │
                     └───────────────────────────────────────┘ └──at_host──> HOST ──rise──> RISING

Does not cover: requests in flight (``memory/ledger`` counts holds), nor how long a failure is remembered (by url and
mtime, in the engine: the name itself is unknown again after a failed load).
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Literal, TypeVar


class Life(enum.Enum):
    """Is there a model of this name, and may it be called?"""

    ABSENT = "absent"
    LOADING = "loading"
    SIZING = "sizing"
    READY = "ready"
    DRAINING = "draining"
    LEAVING = "leaving"
    QUARANTINED = "quarantined"
    FAILED = "failed"


class Residency(enum.Enum):
    """Where the bytes of a registered model lie."""

    DISK = "disk"
    RISING = "rising"
    HOST = "host"
    DEVICE = "device"
    SINKING = "sinking"


LifeEvent = Literal["load", "loaded", "measured", "failed", "unload", "idle", "expired", "quarantine", "gone"]
ResidencyEvent = Literal["rise", "sink", "failed", "lost", "at_device", "at_host", "at_disk"]

#: from, event -> to
LIFE: Mapping[tuple[Life, LifeEvent], Life] = {
    (Life.ABSENT, "load"): Life.LOADING,  # the name is taken from here on: a second POST waits, then gets 409
    (Life.LOADING, "loaded"): Life.SIZING,  # bytes are there but only predicted
    (Life.LOADING, "failed"): Life.FAILED,  # 404 from here on, bytes still counted
    (Life.SIZING, "measured"): Life.READY,
    (Life.SIZING, "failed"): Life.FAILED,  # measured bytes do not fit, or the warm-up raised
    (Life.READY, "unload"): Life.DRAINING,  # new calls get 404, those in flight finish
    (Life.READY, "quarantine"): Life.QUARANTINED,  # killed or hung its process for the second time
    (Life.QUARANTINED, "unload"): Life.DRAINING,  # the only way out: unload, then load anew
    (Life.DRAINING, "idle"): Life.LEAVING,  # the last hold is gone; bytes are still counted
    (Life.DRAINING, "expired"): Life.LEAVING,  # the drain's limit passed: who still waits is answered with an error
    (Life.DRAINING, "quarantine"): Life.DRAINING,  # it died while draining: it is going anyway
    (Life.LEAVING, "gone"): Life.ABSENT,  # the ledger has the bytes back
    (Life.FAILED, "gone"): Life.ABSENT,
}

#: from, event -> to. A third tier is the rows with HOST; on a machine without a GPU they are never reached.
RESIDENCY: Mapping[tuple[Residency, ResidencyEvent], Residency] = {
    (Residency.DISK, "rise"): Residency.RISING,  # reserved in the ledger before this
    (Residency.HOST, "rise"): Residency.RISING,
    (Residency.RISING, "at_device"): Residency.DEVICE,  # committed with the measured bytes
    (Residency.RISING, "failed"): Residency.SINKING,  # part of the bytes may be there: they leave like any others
    (Residency.RISING, "sink"): Residency.SINKING,  # unloaded, or no longer wanted, before it was up
    (Residency.DEVICE, "sink"): Residency.SINKING,  # idle and chosen, unloaded, or its file changed
    (Residency.HOST, "sink"): Residency.SINKING,
    (Residency.SINKING, "at_host"): Residency.HOST,
    (Residency.SINKING, "at_disk"): Residency.DISK,  # released in the ledger
    # The process that held the bytes died; they went with it.
    (Residency.DISK, "lost"): Residency.DISK,
    (Residency.RISING, "lost"): Residency.DISK,
    (Residency.HOST, "lost"): Residency.DISK,
    (Residency.DEVICE, "lost"): Residency.DISK,
    (Residency.SINKING, "lost"): Residency.DISK,
}

#: An invoke is queued in these; in READY it may also run.
CALLABLE = frozenset({Life.LOADING, Life.SIZING, Life.READY})
#: Names that GET /models/{name} knows, with the word it shows (wire/messages.Description.state).
SHOWN: Mapping[Life, str] = {
    Life.LOADING: "loading",
    Life.SIZING: "loading",
    Life.READY: "ready",
    Life.DRAINING: "draining",
    Life.QUARANTINED: "quarantined",
}


class Story:
    """The last steps of one model, oldest first, for the message of an InvalidTransition and for the log."""

    __slots__ = ("_steps", "name")

    def __init__(self, name: str, length: int = 16) -> None:
        self.name = name
        self._steps: deque[str] = deque(maxlen=length)

    def add(self, before: enum.Enum, event: str, after: enum.Enum) -> None:
        """Remember one step."""
        self._steps.append(f"{before.value} --{event}--> {after.value}")

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._steps))

    def __len__(self) -> int:
        return len(self._steps)

    def __str__(self) -> str:
        return "; ".join(self._steps) or "nothing yet"


class InvalidTransition(RuntimeError):
    """An event that the table has no arrow for: a mistake of ours, never of a caller. Carries the story."""

    def __init__(self, name: str, state: enum.Enum, event: str, story: str) -> None:
        super().__init__(f"model {name!r}: no arrow from {state.value} for event {event!r}; its last steps: {story}")
        self.name = name
        self.state = state
        self.event = event
        self.story = story


_State = TypeVar("_State", Life, Residency)
_Event = TypeVar("_Event", bound=str)


def _next(table: Mapping[tuple[_State, _Event], _State], state: _State, event: _Event, story: Story) -> _State:
    after = table.get((state, event))
    if after is None:
        raise InvalidTransition(story.name, state, event, str(story))
    story.add(state, event, after)
    return after


def next_life(state: Life, event: LifeEvent, story: Story) -> Life:
    """Return the state after ``event`` and add the step to ``story``. Raises InvalidTransition."""
    return _next(LIFE, state, event, story)


def next_residency(state: Residency, event: ResidencyEvent, story: Story) -> Residency:
    """Return the residency after ``event`` and add the step to ``story``. Raises InvalidTransition."""
    return _next(RESIDENCY, state, event, story)
