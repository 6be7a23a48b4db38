"""Whose fault a death was, and what follows: counted, and at some point kept out.

A process that had to be killed because a model did not come back: that model is quarantined at once. A process that
died inside a model's code: at the second time. A model whose folder has offended twice gets a process of its own when
it is loaded anew. Does not cover: noticing (``supervise`` for what hangs, ``host/process`` for what dies).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import msgspec

from container import log
from container.engine.calls import Calls
from container.engine.lifecycle import Life
from container.engine.models import Model, Registry
from container.engine.residence import Residence
from container.errors import Quarantined
from container.model.watch import Inside, verdict
from container.wire import messages as m

_log = log.get(__name__)


class Quarantine:
    """The engine's judge. ``tell`` lets the supervisor know, so that a new engine knows it, too."""

    def __init__(self, models: Registry, residence: Residence, calls: Calls, tell: Callable[[m.Control], None]) -> None:
        self._models = models
        self._residence = residence
        self._calls = calls
        self._tell = tell
        self._offences: Counter[str] = Counter()

    def needs_own_process(self, model_dir: str) -> bool:
        """Return whether a model from ``model_dir`` has offended twice."""
        return self._offences[model_dir] > 1

    def on_lost(self, names: list[str], inside: list[Inside], how: str) -> None:
        """A child died: its models are on disk now, and whoever it died in is judged."""
        for name in names:
            model = self._models.get(name)
            if model is not None:
                self._residence.lost(model)
        for name in {each.model: each for each in inside if each.phase == "predict"}:
            model = self._models.get(name)
            if model is None or model.manifest is None:
                continue
            model.deaths += 1
            verdicts = (verdict(each, model.deaths, how, time.monotonic()) for each in inside if each.model == name)
            reason = next(filter(None, verdicts), "")
            self._offences[model.manifest.model_dir] += 1
            if reason and model.life is Life.READY:
                self.keep_out(model, reason)

    def keep_out(self, model: Model, reason: str) -> None:
        """Quarantine ``model``: it answers with ``reason`` until it is unloaded and loaded anew."""
        model.live("quarantine")
        model.reason = reason
        _log.error("model %s is quarantined: %s", model.name, reason)
        self._calls.fail_waiting(model, Quarantined(f"model {model.name!r} is out of service: {reason}"))
        manifest = msgspec.msgpack.encode(model.manifest)
        self._tell(m.Registered(model.name, model.url, manifest, 0, model.deaths, reason))
