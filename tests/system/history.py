"""Whether what clients were told can have happened: one name's calls against the life-cycle table. Pure.

A name goes absent -> loading -> ready -> draining -> absent (engine/lifecycle, LIFE: what of it callers can see). Each
call did one thing, or two (a load begins and ends, so does an unload), at moments between its start and its end. What
they were told is possible if there is an order of all these things that the table allows (linearizability, Herlihy and
Wing 1990). Searched for in full: bursts are small.
"""

from __future__ import annotations

from typing import NamedTuple

#: (verb, what it was told) -> the steps it took: each a state it found the name in, and the state it left it in.
#: What waits is not written down: an invoke during a load is answered after it, but was taken in when it came.
STEPS: dict[tuple[str, str], tuple[tuple[frozenset[str], str | None], ...]] = {
    ("load", "200"): ((frozenset({"absent"}), "loading"), (frozenset({"loading"}), "ready")),
    ("load", "409"): ((frozenset({"ready"}), None),),
    ("unload", "200"): ((frozenset({"ready"}), "draining"), (frozenset({"draining"}), "absent")),
    ("unload", "404"): ((frozenset({"absent", "draining"}), None),),
    ("invoke", "200"): ((frozenset({"loading", "ready"}), None),),
    ("invoke", "404"): ((frozenset({"absent", "draining"}), None),),
    ("describe", "loading"): ((frozenset({"loading"}), None),),
    ("describe", "ready"): ((frozenset({"ready"}), None),),
    ("describe", "draining"): ((frozenset({"draining"}), None),),
    ("describe", "404"): ((frozenset({"absent", "draining"}), None),),
    ("list", "listed"): ((frozenset({"ready"}), None),),
    ("list", "not listed"): ((frozenset({"absent", "loading", "draining"}), None),),
}


class Call(NamedTuple):
    """One call and what it was told of one name. Times are of one clock."""

    verb: str
    told: str
    began: float
    ended: float


def ends(before: str, calls: list[Call]) -> set[str]:
    """Return the states that the name can be in after ``calls``; none if they cannot have been told that."""
    found: set[str] = set()
    seen: set[tuple[tuple[int, ...], str]] = set()

    def go_on(done: tuple[int, ...], state: str) -> None:
        if (done, state) in seen:
            return
        seen.add((done, state))
        open_calls = [index for index, call in enumerate(calls) if done[index] < len(_steps(call))]
        if not open_calls:
            found.add(state)
            return
        first_end = min(calls[index].ended for index in open_calls)
        for index in open_calls:
            call = calls[index]
            if call.began > first_end:
                continue  # another call was over before this one began
            states, after = _steps(call)[done[index]]
            if state in states:
                go_on((*done[:index], done[index] + 1, *done[index + 1 :]), after or state)

    go_on((0,) * len(calls), before)
    return found


def _steps(call: Call) -> tuple[tuple[frozenset[str], str | None], ...]:
    return STEPS[call.verb, call.told]
