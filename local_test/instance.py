"""One container as the platform runs it: load on first use, unload the least recently used when it says 507.

    invoke ── loaded? ──no──> one load at a time per model, in the background; callers wait, each as long as it may
       │                         └─ 200 or 409: loaded    507: unload one, again    else: the callers' error
       └──> POST /models/NAME/invoke ── 404: load again, once    507: unload one, again    else: the answer

What the real platform does after a 507 is documented only as unloading unused models; how many, which first, and what
the caller sees in the end are this file's choices: one at a time, least recently used first, and the last 507 as
ModelError.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from local_test import aws
from local_test.bucket import Artifact, Bucket
from local_test.container_http import Answer, Call, Container, Limits, NoAnswer
from local_test.residents import Residents

log = logging.getLogger(__name__)


class Instance:
    """A container and what the platform believes of it. Safe to use from several threads."""

    def __init__(self, container: Container, bucket: Bucket | None, place: aws.Place, limits: Limits) -> None:
        self.container = container
        self._bucket = bucket
        self._place = place
        self._limits = limits
        self._residents = Residents()
        self._loads: dict[str, Future[None]] = {}
        self._changed = threading.Condition()  # guards the two above; notified whenever they change

    def names(self) -> list[str]:
        """Return the names believed loaded, least recently used first."""
        with self._changed:
            return self._residents.names()

    def in_flight(self) -> int:
        """Return how many requests are under way."""
        with self._changed:
            return self._residents.in_flight()

    def calls(self, name: str | None) -> int:
        """Return how many requests are under way for one model; it is loaded or loading then."""
        with self._changed:
            return self._residents.calls(name)

    def invoke(self, model: Artifact, call: Call) -> Answer:
        """Return the container's answer, whatever its status, with the model loaded first if need be.

        Raises Refused: ModelNotReadyException when the load outlasts the caller's time, ModelError when the load fails
        or no answer comes, ValidationError for an archive that cannot be unpacked.
        """
        deadline = time.monotonic() + self._limits.invoke_s
        with self._held(model.name):
            may_reload = True
            while True:
                self._ensure_loaded(model, deadline)
                try:
                    answer = self.container.invoke(model.name, call, deadline - time.monotonic())
                except NoAnswer as error:
                    raise aws.no_answer(self._place, str(error)) from error
                if answer.status == 404 and may_reload:
                    may_reload = False
                    self._forget(model)
                elif answer.status != 507 or not self._make_room(model.name, deadline):
                    return answer

    def retire(self, name: str) -> None:
        """Unload a model that has been replaced by a newer archive, unless it is in use."""
        with self._changed:
            if not self._residents.is_loaded(name) or self._residents.is_held(name):
                return
            self._residents.leave(name)
        self._unload(name)

    def reconcile(self, within_s: float) -> None:
        """Ask the container for its list and follow it. Raises NoAnswer."""
        before = self.names()
        listed = self.container.models(within_s)
        with self._changed:
            new, gone = self._residents.reconcile(listed, before)
            self._changed.notify_all()
        for name in new:
            log.info("%s holds %s from an earlier run", self.container.url, name)
        for name in gone:
            log.warning("%s no longer lists %s; it is loaded again on its next use", self.container.url, name)

    @contextmanager
    def _held(self, name: str) -> Iterator[None]:
        with self._changed:
            self._residents.hold(name)
        try:
            yield
        finally:
            with self._changed:
                self._residents.release(name)
                self._changed.notify_all()

    def _forget(self, model: Artifact) -> None:
        log.warning("%s does not know %s any more; loading it again", self.container.url, model.key)
        with self._changed:
            self._residents.forget(model.name)

    def _ensure_loaded(self, model: Artifact, deadline: float) -> None:
        while True:
            with self._changed:
                if self._residents.is_loaded(model.name):
                    return
                load = self._loads.get(model.name) or self._start_load(model)
            try:
                load.result(timeout=max(deadline - time.monotonic(), 0))
            except TimeoutError as error:
                raise aws.model_not_ready(model.key, self._limits.invoke_s) from error

    def _start_load(self, model: Artifact) -> Future[None]:
        load: Future[None] = Future()
        self._loads[model.name] = load
        self._residents.begin_load(model.name)
        threading.Thread(target=self._load, args=(model, load), name=f"load-{model.name}", daemon=True).start()
        return load

    def _load(self, model: Artifact, load: Future[None]) -> None:
        begin = time.monotonic()
        failure: Exception | None = None
        try:
            self._load_within(model, begin + self._limits.load_s)
            log.info("loaded %s as %s in %.2f s", model.key, model.name, time.monotonic() - begin)
        except aws.Refused as error:
            failure = error
            log.warning("loading %s failed: %s", model.key, error)
        except Exception as error:  # noqa: BLE001 (a thread's edge: the callers must hear of it, whatever it is)
            failure = error
        with self._changed:
            del self._loads[model.name]
            self._residents.end_load(model.name, loaded=failure is None)
            self._changed.notify_all()
        if failure is None:
            load.set_result(None)
        else:
            load.set_exception(failure)

    def _load_within(self, model: Artifact, deadline: float) -> None:
        assert self._bucket is not None, "a single-model endpoint loads nothing"
        folder = self._bucket.unpack(model)
        with self._changed:
            self._changed.wait_for(lambda: not self._residents.is_leaving(model.name), deadline - time.monotonic())
        while True:
            try:
                answer = self.container.load(model.name, str(folder), model.key, deadline - time.monotonic())
            except NoAnswer as error:
                raise aws.no_answer(self._place, str(error)) from error
            if answer.status in (200, 409):
                return
            if answer.status != 507 or not self._make_room(model.name, deadline):
                raise aws.model_error(self._place, answer.status, answer.body)

    def _make_room(self, besides: str, deadline: float) -> bool:
        """Unload the least recently used idle model; without one, wait for room to come back.

        False when neither is to be had: then the container's 507 is the last word.
        """
        with self._changed:
            freed = self._residents.freed
            self._residents.wait(besides)
            self._changed.notify_all()  # whoever waits for this one must think again
            try:
                while (victim := self._residents.victim(besides)) is None:
                    left_s = deadline - time.monotonic()
                    if left_s <= 0 or not self._residents.worth_waiting(besides):
                        return False
                    self._changed.wait(left_s)
                    if self._residents.freed != freed:
                        return True
                self._residents.leave(victim)
            finally:
                self._residents.wake(besides)
        log.info("507: unloading %s to make room for %s", victim, besides)
        self._unload(victim)
        return True

    def _unload(self, name: str) -> None:
        try:
            answer = self.container.unload(name, self._limits.load_s)
            if answer.status not in (200, 404):
                log.warning("DELETE of %s answered %d; taken as unloaded", name, answer.status)
        except NoAnswer as error:
            log.warning("DELETE of %s: %s; taken as unloaded", name, error)
        with self._changed:
            self._residents.left(name)
            self._changed.notify_all()
