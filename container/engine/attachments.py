"""Models that are there for as long as somebody's connection is: how the workers of the second door hold theirs.

Java kills a worker without a word when its model is unloaded, so what owns a model is the connection: the first attach
of a name loads it, further ones join, the last end of a connection unloads it. Such models are not told to the
supervisor: after an engine's death each worker attaches anew on its next call.
Does not cover: models that were loaded by POST /models or at start; joining these is allowed, and never unloads them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from container import log
from container.engine.loading import Loading, real_path
from container.engine.models import Registry
from container.errors import ModelExists, ModelNotFound, ServingError
from container.wire import messages as m
from container.wire.api import Respond

_log = log.get(__name__)


@dataclass(slots=True)
class _Attached:
    """One name with its holders. ours: its end is our business; gone: set once the name is free again."""

    url: str
    loading: asyncio.Task[m.Loaded] = field(init=False)
    holders: set[Respond] = field(default_factory=set)
    ours: bool = True
    leaving: asyncio.Task[None] | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Attachments:
    """All attached models of one engine."""

    def __init__(self, models: Registry, loading: Loading) -> None:
        self._models = models
        self._loading = loading
        self._attached: dict[str, _Attached] = {}

    async def attach(self, request: m.Attach, respond: Respond) -> m.Loaded:
        """Load ``request.name``, or join its holders, for as long as the peer of ``respond`` is connected.

        A name that is on its way out, or held for another folder, is waited for. Raises whatever the load raises.
        """
        url = str(real_path(request.url) or request.url)
        while (there := self._attached.get(request.name)) is not None and (there.leaving or there.url != url):
            await there.gone.wait()
        if there is None:
            there = self._attached[request.name] = self._begin(request, url)
        there.holders.add(respond)
        loaded = await asyncio.shield(there.loading)
        return m.Loaded(request.id, loaded.bytes, loaded.times_ms)

    def gone(self, respond: Respond) -> None:
        """The peer of ``respond`` has hung up: unload what nobody else holds."""
        for name, attached in self._attached.items():
            if respond in attached.holders:
                attached.holders.discard(respond)
                if not attached.holders and attached.leaving is None:
                    attached.leaving = asyncio.get_running_loop().create_task(self._leave(name, attached))

    def _begin(self, request: m.Attach, url: str) -> _Attached:
        attached = _Attached(url)
        attached.loading = asyncio.get_running_loop().create_task(self._load(request, attached))
        return attached

    async def _load(self, request: m.Attach, attached: _Attached) -> m.Loaded:
        """Load for the first holder; its failure is that of all who have joined meanwhile."""
        try:
            return await self._loading.load(m.Load(request.id, request.name, request.url), kept=False)
        except ModelExists:
            there = self._models.get(request.name)
            if there is None or str(real_path(there.url)) != attached.url:
                self._forget(request.name, attached)
                raise
            attached.ours = False
            return m.Loaded(request.id, 0)
        except ServingError:
            self._forget(request.name, attached)
            raise

    async def _leave(self, name: str, attached: _Attached) -> None:
        try:
            await asyncio.wait([attached.loading])
            if attached.ours and attached.loading.exception() is None:
                await self._loading.unload(m.Unload(0, name))
        except ModelNotFound:
            _log.info("%s was unloaded already when the last that held it hung up", name)
        finally:
            self._forget(name, attached)

    def _forget(self, name: str, attached: _Attached) -> None:
        if self._attached.get(name) is attached:
            del self._attached[name]
        attached.gone.set()
