"""Replays of requests against the ledger and the planner, without a server: which policy keeps the right models up.

A trace is a list of model numbers. Popularity is Zipf's with exponent 0.9; which numbers are popular depends on the
seed. A request for a model that is not up makes room by ``memory/plan`` as the engine does, and counts as a miss. The
oracle knows every popularity and keeps the models up that are worth most per byte, for ever.
"""

from __future__ import annotations

import dataclasses
import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from container.memory.ledger import HALF_LIFE, Ledger, Segment, Tier
from container.memory.order import ORDERS, Coldest, Name
from container.memory.plan import Demote, Marks, ease, make_room

MODELS = 1000
EXPONENT = 0.9
#: Requests a model before counting, and counted.
WARM, COUNTED = 10, 30
MIB = 1 << 20
#: What a rise takes: opening, and reading at 1 GiB/s.
OPEN_S, READ_BYTES_PER_S = 0.002, 1 << 30


@dataclass(frozen=True, slots=True)
class Workload:
    """bytes: of each model. trace: who is asked. popularity: probability of each model; per phase, equal lengths."""

    bytes: Sequence[int]
    trace: Sequence[int]
    popularity: Sequence[Sequence[float]]

    def rise_s(self, model: int) -> float:
        """Return what bringing ``model`` up takes."""
        return OPEN_S + self.bytes[model] / READ_BYTES_PER_S


@dataclass(frozen=True, slots=True)
class Outcome:
    """hits: part of the counted requests that found their model up. saved: part of the rise seconds spared.

    plan_us: microseconds that planning took for each rise.
    """

    hits: float
    saved: float
    plan_us: float


def workload(seed: int, *, mixed: bool = False, phases: int = 1) -> Workload:
    """Return a workload. mixed: sizes from 4 MiB to a GiB, else 100 MiB each. phases: how often popularity is dealt."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, MODELS + 1) ** EXPONENT
    weights /= weights.sum()
    sizes = [100 * MIB] * MODELS
    if mixed:
        sizes = [int(size) for size in np.clip(random.lognormal(np.log(100 * MIB), 1.0, MODELS), 4 * MIB, 1024 * MIB)]
    requests = MODELS * (WARM + COUNTED) // phases
    trace: list[int] = []
    dealt = []
    for _ in range(phases):
        who = random.permutation(MODELS)
        popularity = np.empty(MODELS)
        popularity[who] = weights
        dealt.append(popularity.tolist())
        trace += who[random.choice(MODELS, size=requests, p=weights)].tolist()
    return Workload(sizes, trace, dealt)


def oracle(work: Workload, room_bytes: int) -> Outcome:
    """Return what the oracle reaches: models by popularity, then by seconds, per byte until the room is full."""
    hits = saved = total = 0.0
    for popularity in work.popularity:
        seconds = [popularity[model] * work.rise_s(model) for model in range(MODELS)]
        hits += _filled(popularity, work.bytes, room_bytes)
        saved += _filled(seconds, work.bytes, room_bytes)
        total += sum(seconds)
    return Outcome(hits / len(work.popularity), saved / total, 0.0)


def _filled(worth: Sequence[float], sizes: Sequence[int], room_bytes: int) -> float:
    got = 0.0
    for model in sorted(range(MODELS), key=lambda model: worth[model] / sizes[model], reverse=True):
        if sizes[model] <= room_bytes:
            room_bytes -= sizes[model]
            got += worth[model]
    return got


def replay(
    work: Workload, room_bytes: int, policy: Name, half_life: float = HALF_LIFE, marks: Marks | None = None
) -> Outcome:
    """Return what ``policy`` reaches with ``room_bytes`` on the device; ``marks``: sinking goes on beside it."""
    book = Ledger({Tier.DEVICE: room_bytes}, half_life=half_life)
    coldest = Coldest(book, Tier.DEVICE, ORDERS[policy])
    names = [f"m{model}" for model in range(MODELS)]
    for model, name in enumerate(names):
        book.add(name, [Segment(name, work.bytes[model])])
        book.rose(name, work.rise_s(model))
    up = book.used_by(Tier.DEVICE)
    counted_from = MODELS * WARM
    hits = plans = 0
    saved = spent = planning_s = 0.0
    for number, model in enumerate(work.trace):
        name = names[model]
        cost = work.rise_s(model)
        if name in up:
            hits += number >= counted_from
            saved += cost if number >= counted_from else 0.0
        else:
            started = time.perf_counter()
            steps = make_room(book, Tier.DEVICE, name, order=coldest)
            planning_s += time.perf_counter() - started
            plans += 1
            for step in steps:
                if isinstance(step, Demote):
                    book.demote(step.name, Tier.DEVICE)
                    book.release(step.name, Tier.DEVICE)
            book.reserve(name, Tier.DEVICE)
            book.commit(name, Tier.DEVICE)
            for demote in ease(book, Tier.DEVICE, marks, order=coldest, spared=name) if marks is not None else ():
                book.demote(demote.name, Tier.DEVICE)
                book.release(demote.name, Tier.DEVICE)
        spent += cost if number >= counted_from else 0.0
        book.touch(name, float(number))
    counted = len(work.trace) - counted_from
    return Outcome(hits / counted, saved / spent, planning_s / max(1, plans) * 1e6)


def foresight(work: Workload, room_models: int, counted_from: int = MODELS * WARM) -> float:
    """Return the hits of who knows the trace itself: Belady's rule, the one asked for again last gives way.

    For models of one size. Every model that is asked for comes up, as in a server. Nobody can do better.
    """
    again = _next_calls(work.trace)
    up: dict[int, int] = {}
    last: list[tuple[int, int]] = []  # (-next call, model), some of them out of date
    hits = 0
    for number, model in enumerate(work.trace):
        if model in up:
            hits += number >= counted_from
        elif len(up) == room_models:
            while up.get(last[0][1]) != -last[0][0]:
                heapq.heappop(last)
            del up[heapq.heappop(last)[1]]
        up[model] = again[number]
        heapq.heappush(last, (-again[number], model))
    return hits / (len(work.trace) - counted_from)


def _next_calls(trace: Sequence[int]) -> list[int]:
    """Return for each request which one asks for the same model next; one after all others if none does."""
    seen: dict[int, int] = {}
    again = [0] * len(trace)
    for number in range(len(trace) - 1, -1, -1):
        again[number] = seen.get(trace[number], len(trace) + number)
        seen[trace[number]] = number
    return again


def over(outcome: Outcome, ideal: Outcome) -> Outcome:
    """Return ``outcome`` as a part of ``ideal``."""
    return dataclasses.replace(outcome, hits=outcome.hits / ideal.hits, saved=outcome.saved / ideal.saved)
