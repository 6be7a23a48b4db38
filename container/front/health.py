"""What /ping answers, decided from what this process knows already: it never waits for the engine.

Healthy while the engine is connected or was lost less than GRACE_S ago (a front starts after the engine: a worker that
has not met it yet took the place of another while the engine is replaced, and counts from its own start); not before
the models that the server was started with are loaded or refused; not when the supervisor has written why into
``<run_dir>/unhealthy``. A broken model of many does not count: the platform replaces the whole instance when /ping
fails.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Protocol

import msgspec

from container.errors import ServingError
from container.front.errors import Answer
from container.settings import Settings
from container.wire import messages as m

#: How long /ping stays 200 without an engine (design.md section 2: a restart takes about two seconds).
GRACE_S = 30.0
#: Name under which the model of the `model` folder is registered; it stands behind /invocations.
SINGLE_MODEL = "model"
_POLL_S = 0.25


class Engine(Protocol):
    """What health needs of ``wire.client.Client``."""

    connected: bool
    lost_at: float | None

    async def call(self, request: m.Request) -> m.Reply:
        """Return the reply to ``request``."""


class Health:
    """The state behind /ping."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._born_s = time.monotonic()
        self._unhealthy = settings.run_dir / "unhealthy"
        single = not settings.multi_model and _has_files(settings.base_dir / "model")
        self.started = not single and settings.models_dir is None

    def reason(self, now: float, *, loading_counts: bool = True) -> str:
        """Return why the instance must not get traffic, "" if it may. now: CLOCK_MONOTONIC seconds.

        loading_counts: that first models are still being loaded is such a reason.
        """
        try:
            return self._unhealthy.read_text("utf-8", "replace").strip()[:1000] or "unhealthy"
        except OSError:
            pass  # the usual case: there is no such file
        if not self._engine.connected:
            lost_at = self._born_s if self._engine.lost_at is None else self._engine.lost_at
            if now - lost_at >= GRACE_S:
                return f"the engine has been gone for {now - lost_at:.0f} s"
        if loading_counts and not self.started:
            return "the models that the server was started with are being loaded"
        return ""

    def answer(self) -> Answer:
        """Return the answer to /ping."""
        reason = self.reason(time.monotonic())
        fields = {"status": "Unhealthy", "reason": reason} if reason else {"status": "Healthy"}
        body = msgspec.json.encode(fields)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        return Answer(503 if reason else 200, headers, body)

    async def look(self) -> None:
        """Ask the engine once whether it has been through the models it was started with. Raises ServingError."""
        if not self.started:
            reply = await self._engine.call(m.Ready(0))
            self.started = isinstance(reply, m.Status) and reply.state != m.LOADING

    async def wait_for_first_models(self) -> None:
        """Ask the engine until it has been through the models it was started with; from then on that is remembered."""
        while not self.started:
            try:
                await self.look()
            except ServingError:
                pass  # the engine died; the next one begins anew with them
            if not self.started:
                await asyncio.sleep(_POLL_S)


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
