"""The dispatcher with real lanes: handlers are named for what they do to it."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop

from container.errors import Failure
from container.handler import Claim, Handler
from container.model.dispatch import QUICK_RUNS, Dispatcher
from container.model.lanes import Lanes
from container.model.ticket import Loan, Ticket
from container.payload import Payload


class Echo(Handler):
    """Answers with the input and notes the sizes of its batches and its threads."""

    def __init__(self, wait_s: float = 0.0) -> None:
        self.sizes: list[int] = []
        self.threads: set[str] = set()
        self.wait_s = wait_s

    def predict(self, batch: list[Any]) -> list[Any]:
        self.sizes.append(len(batch))
        self.threads.add(threading.current_thread().name)
        time.sleep(self.wait_s)
        return batch


class TakesSteps(Handler):
    """Works in many steps and lets others in between."""

    def __init__(self) -> None:
        self.steps_done = 0

    def steps(self, batch: list[Any]) -> Iterator[list[Any] | None]:
        for _ in range(40):
            time.sleep(0.005)
            self.steps_done += 1
            yield None
        yield batch


def run(lanes: int, scenario: Callable[[Dispatcher], Awaitable[None]]) -> None:
    async def main() -> None:
        made = Lanes(lanes)
        await asyncio.wait_for(scenario(Dispatcher(made)), 30)
        made.close()

    asyncio.run(main())


def ask(dispatcher: Dispatcher, name: str, body: bytes = b"1") -> tuple[Ticket, asyncio.Future[Payload | Failure]]:
    answered: asyncio.Future[Payload | Failure] = asyncio.get_running_loop().create_future()
    ticket = Ticket(Payload(body), answered.set_result, time.monotonic())
    dispatcher.submit(name, ticket)
    return ticket, answered


def test_a_burst_is_one_batch_and_every_caller_gets_its_own_answer() -> None:
    async def scenario(dispatcher: Dispatcher) -> None:
        handler = Echo()
        dispatcher.open("echo", handler)
        answers = await asyncio.gather(*(ask(dispatcher, "echo", b"%d" % number)[1] for number in range(10)))
        assert [answer.body for answer in answers if isinstance(answer, Payload)] == [b"%d" % n for n in range(10)]
        assert handler.sizes == [10]
        assert not dispatcher.busy("echo")

    run(1, scenario)


def test_what_comes_while_a_batch_runs_waits_together_and_limits_hold() -> None:
    async def scenario(dispatcher: Dispatcher) -> None:
        handler = Echo(0.05)
        dispatcher.open("echo", handler, max_items=4)
        first = ask(dispatcher, "echo")[1]
        await asyncio.sleep(0.02)
        await asyncio.gather(first, *(ask(dispatcher, "echo")[1] for _ in range(6)))
        assert handler.sizes == [1, 4, 2]

    run(2, scenario)


def test_a_handler_that_is_not_reentrant_never_runs_twice_at_a_time() -> None:
    async def scenario(dispatcher: Dispatcher) -> None:
        inside, most = 0, 0

        class Counts(Echo):
            def predict(self, batch: list[Any]) -> list[Any]:
                nonlocal inside, most
                inside += 1
                most = max(most, inside)
                time.sleep(0.01)
                inside -= 1
                return batch

        dispatcher.open("counts", Counts(), max_items=1)
        await asyncio.gather(*(ask(dispatcher, "counts")[1] for _ in range(10)))
        assert most == 1

    run(4, scenario)


def test_long_work_in_steps_makes_way_for_others_and_still_ends() -> None:
    async def scenario(dispatcher: Dispatcher) -> None:
        long, short = TakesSteps(), Echo()
        dispatcher.open("long", long)
        dispatcher.open("short", short)
        slow = ask(dispatcher, "long")[1]
        await asyncio.sleep(0.02)
        await ask(dispatcher, "short")[1]
        assert not slow.done()
        assert long.steps_done < 40
        assert isinstance(await slow, Payload)

    run(1, scenario)


def test_a_dropped_ticket_is_not_run_and_never_settled() -> None:
    async def scenario(dispatcher: Dispatcher) -> None:
        handler = Echo(0.05)
        dispatcher.open("echo", handler)
        first = ask(dispatcher, "echo")[1]
        await asyncio.sleep(0.02)
        dropped, unanswered = ask(dispatcher, "echo", b"2")
        dropped.drop()
        await first
        await ask(dispatcher, "echo", b"3")[1]
        assert handler.sizes == [1, 1]
        assert not unanswered.done()
        assert not dispatcher.busy("echo")

    run(1, scenario)


def test_a_manifest_that_asks_for_company_waits_for_it_but_not_longer() -> None:
    async def scenario(dispatcher: Dispatcher) -> None:
        handler = Echo()
        dispatcher.open("echo", handler, max_items=3, max_delay_ms=150)
        full = [ask(dispatcher, "echo")[1] for _ in range(2)]
        await asyncio.sleep(0.03)
        assert handler.sizes == []
        full.append(ask(dispatcher, "echo")[1])
        await asyncio.gather(*full)
        await ask(dispatcher, "echo")[1]
        assert handler.sizes == [3, 1]

    run(1, scenario)


def test_a_model_that_is_always_quick_runs_without_a_thread_until_it_is_slow_once() -> None:
    async def scenario(dispatcher: Dispatcher) -> None:
        handler = Echo()
        dispatcher.open("echo", handler)
        for _ in range(QUICK_RUNS * 3):
            await ask(dispatcher, "echo")[1]
        assert {"MainThread", "lane-0"} >= handler.threads
        handler.wait_s = 0.01
        await ask(dispatcher, "echo")[1]
        handler.threads.clear()
        await ask(dispatcher, "echo")[1]
        assert handler.threads == {"lane-0"}

    run(1, scenario)


class Quick(Handler):
    """Answers with the input, waits for nothing, and notes the sizes of its batches and its threads."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads: set[str] = set()

    def predict(self, batch: list[Any]) -> list[Any]:
        self.sizes.append(len(batch))
        self.threads.add(threading.current_thread().name)
        return batch


def test_a_quick_model_stays_so_when_others_have_the_core_and_takes_all_that_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(dispatcher: Dispatcher) -> None:
        handler = Quick()
        dispatcher.open("quick", handler)
        while "MainThread" not in handler.threads:
            await ask(dispatcher, "quick")[1]
        handler.threads.clear()
        handler.sizes.clear()
        seconds = itertools.count()
        monkeypatch.setattr("container.model.lanes.time.perf_counter", lambda: float(next(seconds)))
        for _ in range(3):
            await asyncio.gather(*(ask(dispatcher, "quick")[1] for _ in range(8)))
        monkeypatch.undo()
        assert (handler.threads, handler.sizes) == ({"MainThread"}, [8, 8, 8])

    run(4, scenario)


@pytest.mark.parametrize("free_lanes", [1, 3])
def test_idle_is_told_once_nothing_waits_or_runs(free_lanes: int) -> None:
    async def scenario(dispatcher: Dispatcher) -> None:
        told: list[tuple[str, bool]] = []
        dispatcher.on_idle = lambda name: told.append((name, dispatcher.busy(name)))
        dispatcher.open("echo", Echo(0.01))
        await asyncio.gather(*(ask(dispatcher, "echo")[1] for _ in range(3)))
        await asyncio.sleep(0.01)
        assert told == [("echo", False)]

    run(free_lanes, scenario)


def test_a_request_that_waits_for_company_in_vain_is_answered_however_often() -> None:
    """The loop of the server counts in whole milliseconds, so that an alarm may ring just before its time."""

    async def scenario() -> None:
        made = Lanes(1)
        dispatcher = Dispatcher(made)
        dispatcher.open("echo", Echo(), max_delay_ms=3)
        answers = [await asyncio.wait_for(ask(dispatcher, "echo")[1], 5) for _ in range(200)]
        assert {type(answer) for answer in answers} == {Payload}
        made.close()

    uvloop.run(scenario())


def test_tickets_go_back_when_the_files_under_their_model_are_others() -> None:
    """Before a batch, after it, and for what has begun to answer in pieces not at all."""

    async def scenario(dispatcher: Dispatcher) -> None:
        fresh = [True]
        back: list[bytes] = []
        stale: list[str] = []
        dispatcher.on_stale = stale.append

        def back_again(ticket: Ticket) -> None:
            ticket.renew()
            back.append(ticket.payload.body)

        handler = Echo(0.1)
        dispatcher.open("echo", handler, max_items=1, is_fresh=lambda: fresh[0])
        asked = [ask(dispatcher, "echo", body) for body in (b"1", b"2", b"3")]
        for ticket, _ in asked[:2]:
            ticket.give_back = back_again
        await asyncio.sleep(0.05)
        fresh[0] = False
        answer = await asked[2][1]  # nobody takes it back: it is told
        while dispatcher.busy("echo"):
            await asyncio.sleep(0.01)
        assert isinstance(answer, Failure)
        assert answer.code == "server.restarting"
        assert sorted(back) == [b"1", b"2"]
        assert (handler.sizes, stale) == ([1], ["echo"])
        assert not any(answered.done() for _, answered in asked[:2])

    run(1, scenario)


def test_a_ticket_that_ran_out_of_memory_makes_batches_smaller_for_good() -> None:
    async def scenario(dispatcher: Dispatcher) -> None:
        handler = Echo()
        dispatcher.open("echo", handler, max_items=8)
        first, answered = ask(dispatcher, "echo")
        await answered
        first.renew()
        first.most = 2
        dispatcher.submit("echo", first)
        first.settle = lambda result: None
        await asyncio.gather(*(ask(dispatcher, "echo")[1] for _ in range(5)))
        await asyncio.gather(*(ask(dispatcher, "echo")[1] for _ in range(4)))
        assert handler.sizes == [1, 2, 2, 2, 2, 2]

    run(1, scenario)


def test_what_a_model_takes_is_known_from_its_first_batch_on_and_when_it_comes_again() -> None:
    async def scenario(dispatcher: Dispatcher) -> None:
        dispatcher.open("slow", Echo(0.1))
        assert dispatcher.close("slow") is None, "nothing of it has run"
        dispatcher.open("slow", Echo(0.1))
        await ask(dispatcher, "slow")[1]
        slow_s = dispatcher.close("slow")
        assert slow_s is not None
        assert slow_s >= 0.1, "not smoothed with a guess"
        order: list[str] = []
        dispatcher.open("hurry", Echo(0.05))
        dispatcher.open("slow", Echo(), item_s=slow_s)
        dispatcher.open("quick", Echo(), item_s=0.001)
        asked = []
        for name in ("hurry", "slow", "quick"):  # the lane is taken by the first while the others come
            asked.append(ask(dispatcher, name)[1])
            asked[-1].add_done_callback(lambda done, name=name: order.append(name))
            await asyncio.sleep(0.01)
        await asyncio.gather(*asked)
        assert order == ["hurry", "quick", "slow"]

    run(1, scenario)


class WorksInParts(Handler):
    """Claims for all and works on as many as it was granted at a time."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def steps(self, batch: list[Any]) -> Iterator[list[Any] | Claim | None]:
        claim = Claim(1, len(batch))
        yield claim
        claim.waiting = range(claim.granted, len(batch))
        self.begun.set()
        self.go_on.wait(10)
        yield batch


def test_who_waits_inside_a_run_for_want_of_memory_is_known() -> None:
    async def scenario(dispatcher: Dispatcher) -> None:
        handler = WorksInParts()
        dispatcher.open("a", handler)

        async def lend(model: str, least: int, most: int) -> Loan:
            return Lent(2)

        dispatcher.lend = lend
        asked = [ask(dispatcher, "a", body) for body in (b"1", b"no JSON", b"3", b"4")]
        await asyncio.to_thread(handler.begun.wait, 10)
        assert [ticket.lacks() for ticket, _ in asked] == [0, 0, 0, 1], "places are those of the requests"
        handler.go_on.set()
        await asyncio.gather(*(answered for _, answered in asked))

    run(1, scenario)


class Lent:
    """Some bytes that nobody wants back."""

    def __init__(self, nbytes: int) -> None:
        self.bytes = nbytes

    def end(self) -> None:
        """Nothing happens."""
