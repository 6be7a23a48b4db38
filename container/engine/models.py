"""The registered models: one record each, and the registry that finds and lists them."""

from __future__ import annotations

import asyncio
import bisect
import re
from collections import deque
from dataclasses import dataclass, field

from container.archive.manifest import Manifest
from container.engine import lifecycle
from container.engine.lifecycle import Life, Residency, Story
from container.engine.pace import Pace
from container.engine.runners import Runner
from container.errors import BadName, BadPageToken, ModelNotFound
from container.model.ticket import Ticket
from container.payload import Payload

NAME = re.compile(r"[A-Za-z0-9._-]{1,256}")
#: The name of the model of a single-model endpoint, and what an empty name in an Invoke means.
SINGLE = "model"


@dataclass(slots=True)
class Model:
    """What the engine knows of one name.

    stamp: what its folder was when it was described (``archive/tree``). waiting: requests that came while the bytes
    were not on the device. in_flight: requests handed to the runner and not answered yet. loading: set while the first
    load runs, so that others can wait for its end. kept: the supervisor knows of it, for the next engine. stale: its
    files, or its place, are not those that it was brought up from. starved: requests that ran out of memory and wait
    for their second try. origin: the archive that the folder at ``url`` was unpacked from.
    """

    name: str
    url: str
    manifest: Manifest | None = None
    stamp: bytes = b""
    runner: Runner | None = None
    life: Life = Life.ABSENT
    residency: Residency = Residency.DISK
    story: Story = field(default_factory=lambda: Story(""))
    waiting: deque[Ticket] = field(default_factory=deque)
    in_flight: int = 0
    held: bool = False
    rising: asyncio.Task[None] | None = None
    loading: asyncio.Future[None] | None = None
    reason: str = ""
    deaths: int = 0
    kept: bool = True
    stale: bool = False
    starved: list[Ticket] = field(default_factory=list)
    times_ms: dict[str, float] = field(default_factory=dict)
    example: Payload | None = None
    pace: Pace = field(default_factory=Pace)
    origin: str = ""

    def __post_init__(self) -> None:
        self.story = Story(self.name)

    def live(self, event: lifecycle.LifeEvent) -> None:
        """Take a step of life. Raises InvalidTransition."""
        self.life = lifecycle.next_life(self.life, event, self.story)

    def reside(self, event: lifecycle.ResidencyEvent) -> None:
        """Take a step of residency. Raises InvalidTransition."""
        self.residency = lifecycle.next_residency(self.residency, event, self.story)

    @property
    def shown(self) -> str:
        """The url as callers know it: the archive that was given, not the folder that it was unpacked to."""
        return self.origin or self.url

    @property
    def kind(self) -> str:
        """The archive's kind, "" while it is not described yet."""
        return self.manifest.kind if self.manifest is not None else ""

    @property
    def at_hand(self) -> bool:
        """Whether a request could run at once: the bytes are on the device and their process can be reached."""
        return self.residency is Residency.DEVICE and self.runner is not None and self.runner.up(self.name)

    @property
    def busy(self) -> bool:
        """Whether any request waits for it, or is in flight, or still runs without a caller."""
        return bool(self.waiting or self.in_flight or (self.runner is not None and self.runner.busy(self.name)))


class Registry:
    """Names to models; what is listed are the ready ones, in order of name.

    left_out: what the server was started with and did not load -> why; whoever calls one is told.
    """

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}
        self.left_out: dict[str, str] = {}

    def get(self, name: str) -> Model | None:
        """Return the record of ``name``, None if there is none."""
        return self._models.get(name)

    def known(self, name: str) -> Model:
        """Return the record of a model that callers may know of. Raises ModelNotFound."""
        model = self._models.get(name)
        if model is None or model.life not in lifecycle.SHOWN:
            raise self.missing(name)
        return model

    def missing(self, name: str) -> ModelNotFound:
        """Return the error for a name that nobody has, or nobody may call yet."""
        if name in self.left_out:
            return ModelNotFound(f"no model {name!r} is registered; it was left out at start: {self.left_out[name]}")
        return ModelNotFound(f"no model {name!r} is registered; POST /models registers one, GET /models lists them")

    def add(self, model: Model) -> None:
        """Take ``model`` in under its name."""
        self._models[model.name] = model
        self.left_out.pop(model.name, None)

    def remove(self, name: str) -> None:
        """Forget ``name``."""
        self._models.pop(name, None)

    def all(self) -> list[Model]:
        """Return all records, whatever their state."""
        return list(self._models.values())

    def page(self, limit: int, token: str) -> tuple[list[Model], str]:
        """Return up to ``limit`` ready models from ``token`` on, and the token of the next page ("" = last).

        The token is the name that the page before ended with, in hex: it stays right while models come and go.
        Raises BadPageToken.
        """
        try:
            after = bytes.fromhex(token).decode("ascii")
        except ValueError:
            after = "?"
        if token and not NAME.fullmatch(after):
            raise BadPageToken(
                f"next_page_token {token[:80]!r} was not given out by this server; leave it out to start over"
            )
        names = sorted(name for name, model in self._models.items() if model.life is Life.READY)
        start = bisect.bisect_right(names, after) if token else 0
        chosen = names[start : start + limit]
        more = start + limit < len(names)
        return [self._models[name] for name in chosen], chosen[-1].encode().hex() if more else ""


def check_name(name: str) -> None:
    """Raise BadName unless ``name`` may name a model."""
    if not NAME.fullmatch(name):
        raise BadName(f"model name {name[:80]!r} is not allowed: 1 to 256 of letters, digits, '.', '_' and '-'")
