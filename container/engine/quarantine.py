"""Whose fault a death was, and what follows: counted, and at some point kept out.

A process that had to be killed because a model did not come back: that model is quarantined at once. A process that
died inside a model's code: at the second time. A model whose folder has offended twice gets a process of its own when
it is loaded anew; the supervisor keeps these marks for the next engine. Deaths outside of anybody's code (a thread of
an author's that ends the process later) have a budget: beyond it, those who share the process get one each, and one
that has its own is kept out.
Does not cover: noticing (``supervise`` for what hangs, ``host/process`` for what dies).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from container import log
from container.engine.calls import Calls
from container.engine.lifecycle import Life, Residency
from container.engine.models import Model, Registry
from container.engine.residence import Residence
from container.errors import Quarantined
from container.model.watch import Inside, verdict
from container.wire import messages as m

_log = log.get(__name__)

#: More deaths of one process than this within the window, with nobody's code to blame, and something must follow.
DEATHS, WINDOW_S = 3, 300.0


class Quarantine:
    """The engine's judge. ``tell`` and ``tell_of`` let the supervisor know, so that a new engine knows it, too.

    tell_of: says how a registered model is now.
    """

    def __init__(
        self,
        models: Registry,
        residence: Residence,
        calls: Calls,
        tell: Callable[[m.Control], None],
        tell_of: Callable[[Model], None],
    ) -> None:
        self._models = models
        self._residence = residence
        self._calls = calls
        self._tell = tell
        self._tell_of = tell_of
        self._marks: dict[str, m.Marked] = {}
        self._unexplained: dict[str, deque[float]] = {}

    def needs_own_process(self, model_dir: str) -> bool:
        """Return whether a model from ``model_dir`` has offended twice, or cannot live among others."""
        mark = self._marks.get(model_dir)
        return mark is not None and (mark.offences > 1 or mark.apart)

    def inherit(self, marks: list[m.Marked]) -> None:
        """Know what earlier engines knew."""
        self._marks = {mark.model_dir: mark for mark in marks}

    def _mark(self, model: Model, *, offences: int = 0, apart: bool = False) -> None:
        """Add to what is known of the folder of ``model``."""
        assert model.manifest is not None
        folder = model.manifest.model_dir
        known = self._marks.get(folder, m.Marked(folder))
        mark = self._marks[folder] = m.Marked(folder, known.offences + offences, known.apart or apart)
        self._tell(mark)

    def set_apart(self, model: Model, why: str) -> None:
        """Give ``model`` a process of its own from its next rise on; while it is up, somebody has to renew it."""
        _log.warning("model %s gets a process of its own: %s", model.name, why)
        self._mark(model, apart=True)
        if model.residency is Residency.DISK:
            model.runner = None

    def on_lost(self, names: list[str], inside: list[Inside], how: str, process: str, *, alone: bool) -> None:
        """A child died: its models are on disk now, and whoever it died in is judged.

        process: its name, the same after a restart. alone: it has one model.
        """
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
            self._mark(model, offences=1)
            if model.life is Life.READY:
                if reason:
                    self.keep_out(model, reason)
                else:
                    self._tell_of(model)
        if not inside:
            self._count(process, [model for name in names if (model := self._models.get(name))], how, alone)

    def _count(self, process: str, models: list[Model], how: str, alone: bool) -> None:
        """A process died outside of any model's code; beyond the budget, see the module's text."""
        now = time.monotonic()
        deaths = self._unexplained.setdefault(process, deque(maxlen=DEATHS + 1))
        deaths.append(now)
        if len(deaths) <= DEATHS or now - deaths[0] > WINDOW_S:
            return
        deaths.clear()
        for model in models:
            if not alone:
                self.set_apart(model, "its process dies again and again and nobody says of whom")
            elif model.life is Life.READY:
                self.keep_out(model, f"its process died {DEATHS + 1} times between its requests, the last time {how}")

    def keep_out(self, model: Model, reason: str) -> None:
        """Quarantine ``model``: it answers with ``reason`` until it is unloaded and loaded anew."""
        model.live("quarantine")
        model.reason = reason
        _log.error("model %s is quarantined: %s", model.name, reason)
        self._tell_of(model)
        self._calls.fail_waiting(model, Quarantined(f"model {model.name!r} is out of service: {reason}"))
