"""The verbs, as both ends see them.

The engine serves this to the fronts, and a host child serves it to the engine; ``wire/client.Client`` is the same thing
at the other end of the socket.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from container.wire import messages as m

#: Called exactly once, on the service's event loop, with the reply of a request.
Respond = Callable[[m.Reply], None]


class Service(Protocol):
    """What a process offers over its socket. A coroutine may raise ServingError; it is sent as Failed."""

    def invoke(self, request: m.Invoke, respond: Respond) -> None:
        """Queue ``request`` and return at once; ``respond`` is called later with an Answer. Never raises."""

    def cancel(self, request_id: int, respond: Respond) -> None:
        """Forget the request that came with this ``respond``, if it has not started."""

    def gone(self, respond: Respond) -> None:
        """Cancel and detach everything that came with ``respond``: its peer has hung up."""

    def counts(self, counts: m.Counts) -> None:
        """Add what a front counted by itself."""

    async def load(self, request: m.Load) -> m.Loaded:
        """Register a model and bring it up."""

    async def attach(self, request: m.Attach, respond: Respond) -> m.Loaded:
        """Load a model for as long as the peer of ``respond`` is connected, or join those for whom it is."""

    async def move(self, request: m.Move) -> m.Loaded:
        """Move a model between the device and RAM."""

    async def share(self, request: m.Share) -> m.Shared:
        """Keep what a model has in common with others once."""

    async def unload(self, request: m.Unload) -> m.Unloaded:
        """Drain a model, free it, forget it."""

    async def list(self, request: m.List) -> m.Page:
        """Return some of the ready models."""

    async def describe(self, request: m.Describe) -> m.Description:
        """Return what may be known of one model."""

    async def ready(self, request: m.Ready) -> m.Status:
        """Return the state of the process."""

    async def stats(self, request: m.Stats) -> m.Figures:
        """Return counters and gauges."""

    async def drain(self, request: m.Drain) -> m.Status:
        """Take no new work; return when idle."""
