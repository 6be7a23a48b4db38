"""Threads that run batches on the device.

A lane advances a job until it is done, or hands it back between two steps when others wait (long generation). What a
job yields is reported on the event loop. The lane is the loop edge of the process: a bug in our own pipeline must end
the job, never the lane.
"""

from __future__ import annotations

import asyncio
import mmap
import queue
import resource
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from container import log
from container.errors import Internal
from container.handler import Claim, Parts
from container.model import watch
from container.model.pipeline import Results

_log = log.get(__name__)

#: How long a job may hold a lane while others wait, in seconds; looked at between its steps.
SLICE_S = 0.02
#: How long at most what can wait gives running jobs to end, and how often it looks whether they have.
LULL_S, _LOOK_S = 0.025, 0.0005

#: Where lanes of tests and tools write, whom nobody watches.
_NO_SLOT = watch.Slot(mmap.mmap(-1, mmap.PAGESIZE), 0, 0)


@dataclass(slots=True, eq=False)
class Job:
    """One batch of one model on its way through a lane.

    steps: yields results as they are ready, Parts of them, Claims, and None between steps. count: how many results are
    due in all. on_results / on_done / on_parts / on_claim: called on the event loop. on_done gets the seconds spent in
    lanes. After on_claim the job stands still until ``Lanes.go_on``, or its owner gives it up; None = it has what it
    claims. allowed_s: seconds without Parts after which it counts as hung. unwanted: results that nobody waits for
    any more; when no others are due, the job ends at its next step.
    """

    model: str
    steps: Iterator[Results | Parts | Claim | None]
    count: int
    on_results: Callable[[Results], None]
    on_done: Callable[[float], None]
    allowed_s: float = 60.0
    on_parts: Callable[[Parts], None] = lambda parts: None
    on_claim: Callable[[Job, Claim], None] | None = None
    #: Seconds that it will probably take.
    expected_s: float = float("inf")
    busy_s: float = 0.0
    given: int = 0
    unwanted: int = 0
    #: ``busy_s`` when the last Parts came.
    alive_s: float = 0.0

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for a result that is not given yet."""
        return self.given + self.unwanted < self.count


class Lanes:
    """``count`` threads; all methods are called on the event loop that made it.

    slots: ``count`` + 1 places on the page that the supervisor reads; the last is for jobs on the event loop itself.
    """

    def __init__(
        self, count: int, tune: Callable[[int, float], None] | None = None, slots: Sequence[watch.Slot] | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._paused: deque[Job] = deque()
        self._tune = tune
        self._running: list[Job] = []
        self.count = count
        #: Set by the owner: more work is ready than there are lanes; running jobs give way between steps.
        self.contended = False
        #: The last job to come back had made way: now it is the turn of something new.
        self.gave_way = False
        #: Called whenever a lane has become free.
        self.on_free: Callable[[], None] = lambda: None
        self._slots = slots or [_NO_SLOT] * (count + 1)
        for number in range(count):
            slot = self._slots[number]
            threading.Thread(target=self._run, args=(slot,), name=f"lane-{number}", daemon=True).start()

    @property
    def free(self) -> int:
        """Lanes that would start a job at once."""
        return max(0, self.count - len(self._running))

    @property
    def busy(self) -> int:
        """Lanes that are computing."""
        return len(self._running)

    @property
    def paused(self) -> int:
        """Jobs that made way and wait for a lane."""
        return len(self._paused)

    def start(self, job: Job, *, here: bool = False) -> None:
        """Run ``job`` on a free lane; ``here``: on the event loop itself, for jobs known to take microseconds."""
        self._running.append(job)
        if here:
            before = resource.getrusage(resource.RUSAGE_THREAD)
            results, paused, busy_s = self._advance(job, self._slots[self.count])
            after = resource.getrusage(resource.RUSAGE_THREAD)
            if after.ru_nvcsw == before.ru_nvcsw:  # it waited for nothing: the rest of the time others had the core
                busy_s = min(busy_s, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
            self._loop.call_soon(self._back, job, results, paused, busy_s)
        else:
            self._jobs.put(job)

    def resume(self) -> bool:
        """Put the oldest paused job back on a lane; False when there is none."""
        if not self._paused:
            return False
        self.start(self._paused.popleft())
        return True

    def go_on(self, job: Job) -> None:
        """Let ``job``, whose claim is granted, have a lane again."""
        self._paused.append(job)
        self.on_free()

    def await_lull(self) -> None:
        """Return when no lane computes, or when what runs has had the time it was expected to take; from any thread.

        For work that can wait and holds the interpreter's lock for a millisecond: each of a batch's hundred operations
        asks for that lock, so the batch would stand still for as long as the work takes.
        """
        until_s = time.monotonic() + min(LULL_S, max((job.expected_s for job in list(self._running)), default=0.0))
        while self._running and time.monotonic() < until_s:
            time.sleep(_LOOK_S)

    def close(self) -> None:
        """Let the threads end once they are free."""
        for _ in range(self.count):
            self._jobs.put(None)

    def _run(self, slot: watch.Slot) -> None:
        while (job := self._jobs.get()) is not None:
            if self._tune is not None:
                self._tune(len(self._running), job.expected_s)
            came_to = self._advance(job, slot)
            try:
                self._loop.call_soon_threadsafe(self._back, job, *came_to)
            except RuntimeError:  # the loop has closed: the process is going down
                return
            del job, came_to  # a lane that waits for work keeps neither a model nor an answer

    def _advance(self, job: Job, slot: watch.Slot) -> tuple[Results, bool | Claim, float]:
        """Return the results not reported yet, whether the job only made way or for what, and the seconds this took."""
        started = time.perf_counter()
        slot.enter("predict", job.model, job.allowed_s - (job.busy_s - job.alive_s))
        results, paused = self._run_steps(job, started, slot)
        slot.leave()
        return results, paused, time.perf_counter() - started

    def _run_steps(self, job: Job, started: float, slot: watch.Slot) -> tuple[Results, bool | Claim]:
        try:
            for results in job.steps:
                if isinstance(results, Parts):
                    self._loop.call_soon_threadsafe(job.on_parts, results)
                    job.alive_s = job.busy_s + time.perf_counter() - started
                    slot.enter("predict", job.model, job.allowed_s)
                elif isinstance(results, Claim):
                    if job.on_claim is not None and job.wanted:
                        return [], results
                elif results:
                    job.given += len(results)
                    if job.given >= job.count:
                        job.steps.close()  # type: ignore[attr-defined]
                        return results, False
                    self._loop.call_soon_threadsafe(job.on_results, results)
                if not job.wanted:
                    job.steps.close()  # type: ignore[attr-defined]
                    return [], False
                if self.contended and time.perf_counter() - started > SLICE_S:
                    return [], True
        except Exception:  # noqa: BLE001 - the loop edge of the process: the lane must outlive a bug of ours
            _log.exception("a batch of %s failed in a way nobody foresaw", job.model)
        failure = Internal(Internal.TEXT).to_failure()
        return [(index, failure) for index in range(job.count)], False

    def _back(self, job: Job, results: Results, paused: bool | Claim, busy_s: float) -> None:
        self._running.remove(job)
        self.gave_way = paused is True
        job.busy_s += busy_s
        if isinstance(paused, Claim):
            assert job.on_claim is not None
            job.on_claim(job, paused)
        elif paused:
            self._paused.append(job)
        else:
            job.on_results(results)  # before on_done, so that "idle" means answered, too
            job.on_done(job.busy_s)
        self.on_free()
