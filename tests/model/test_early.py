"""Answers before the end of a batch: pieces (Parts) and whole ones (Ready)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from container.errors import Failure
from container.handler import Handler, Parts, Ready
from container.model import pipeline
from container.model.dispatch import Dispatcher
from container.model.lanes import Lanes
from container.model.ticket import Ticket
from container.payload import Payload


class TellsWordByWord(Handler):
    """Answers a text with its words, one a step; an input of one word is ready at once."""

    reentrant = True

    def __init__(self, pause_s: float = 0.0, on_step: Callable[[int], Any] = lambda step: None) -> None:
        self.pause_s = pause_s
        self.on_step = on_step
        self.steps_done = 0
        self.closed = False

    def steps(self, batch: list[Any]) -> Iterator[Any]:
        words = [text.split() for text in batch]
        try:
            short = {i: each[0] for i, each in enumerate(words) if len(each) == 1}
            if short:
                yield Ready(short)
            for step in range(max(map(len, words)) - 1):
                self.steps_done += 1
                time.sleep(self.pause_s)
                self.on_step(step)
                yield Parts({i: piece(each[step] + " ") for i, each in enumerate(words) if step < len(each) - 1})
            yield [piece(each[-1]) if len(each) > 1 else each[0] for each in words]
        finally:
            self.closed = True


def piece(text: str) -> Payload:
    return Payload(text.encode(), "text/plain")


def answers(handler: Handler, *texts: str) -> list[Any]:
    payloads = [Payload(b'"%s"' % text.encode()) for text in texts]
    return list(pipeline.answer(handler, payloads, 4096, 32))


def test_parts_are_told_by_the_place_of_their_payload_and_ready_ones_are_answered_at_once() -> None:
    first, *parts, last = answers(TellsWordByWord(), "a b c", "x", "d e")
    assert [(index, result.body) for index, result in first] == [(1, b'"x"')]
    told = [{index: part.body for index, part in each.items()} for each in parts]
    assert all(isinstance(each, Parts) for each in parts)
    assert told == [{0: b"a ", 2: b"d "}, {0: b"b "}]
    assert sorted((index, result.body) for index, result in last) == [(0, b"c"), (2, b"e")]


class FailsAfterItsFirstWord(TellsWordByWord):
    """Fails whenever more than one is in its batch, after everybody has a piece."""

    def steps(self, batch: list[Any]) -> Iterator[Any]:
        yield Parts({0: piece("begun ")})
        if len(batch) > 1:
            yield Ready({2: "ready"})
            raise RuntimeError("together it does not work")
        yield [piece("alone")] * len(batch)


def test_after_a_failure_only_those_are_run_again_who_have_heard_nothing_yet() -> None:
    found: dict[int, Any] = {}
    for each in answers(FailsAfterItsFirstWord(), "a", "b", "c"):
        if not isinstance(each, Parts):
            for index, result in each or ():
                assert index not in found
                found[index] = result
    assert isinstance(found[0], Failure) and found[0].code == "model.failed"
    assert (found[1].body, found[2].body) == (b"alone", b'"ready"')


@pytest.mark.parametrize(
    "early, said",
    [
        (Parts({5: piece("x")}), "place 5, which waits for nothing"),
        (Ready({"a": 1}), "place 'a', which waits for nothing"),
        (Parts({0: "text"}), "yielded a str as a piece"),  # type: ignore[dict-item]
    ],
)
def test_what_steps_may_not_yield_is_the_models_fault(early: Any, said: str) -> None:
    class YieldsNonsense(Handler):
        def steps(self, batch: list[Any]) -> Iterator[Any]:
            yield early
            yield batch

    (results,) = [each for each in answers(YieldsNonsense(), "a") if each]
    assert results[0][1].code == "model.bad_answer"
    assert said in results[0][1].message


def test_an_output_that_is_a_payload_goes_out_as_it_is() -> None:
    class AnswersAPayload(Handler):
        def predict(self, batch: list[Any]) -> list[Any]:
            return [Payload(b"\x00", "application/x-mine", status=202)] * len(batch)

    assert answers(AnswersAPayload(), "a") == [[(0, Payload(b"\x00", "application/x-mine", status=202))]]


# --- through the dispatcher ------------------------------------------------------------------------------------------


def run(scenario: Callable[[Dispatcher], Any], lanes: int = 1) -> None:
    async def main() -> None:
        made = Lanes(lanes)
        await asyncio.wait_for(scenario(Dispatcher(made)), 20)
        made.close()

    asyncio.run(main())


def ask(
    dispatcher: Dispatcher, text: str, part: Callable[[Payload], None] | None = None
) -> tuple[Ticket, asyncio.Future[Payload | Failure]]:
    answered: asyncio.Future[Payload | Failure] = asyncio.get_running_loop().create_future()
    ticket = Ticket(Payload(b'"%s"' % text.encode()), answered.set_result, time.monotonic(), part=part)
    dispatcher.submit("m", ticket)
    return ticket, answered


def test_pieces_reach_who_takes_them_in_order_and_are_one_answer_for_who_does_not() -> None:
    async def scenario(dispatcher: Dispatcher) -> None:
        dispatcher.open("m", TellsWordByWord())
        told: list[bytes] = []
        _, streamed = ask(dispatcher, "a b c", lambda each: told.append(each.body))
        _, gathered = ask(dispatcher, "d e f")
        assert await gathered == piece("d e f")
        assert await streamed == piece("")
        assert told == [b"a ", b"b ", b"c"]

    run(scenario)


def test_work_that_nobody_waits_for_ends_at_its_next_step() -> None:
    async def scenario(dispatcher: Dispatcher) -> None:
        handler = TellsWordByWord(pause_s=0.01)
        dispatcher.open("m", handler)
        idle = asyncio.Event()
        dispatcher.on_idle = lambda name: idle.set()
        told: asyncio.Queue[Payload] = asyncio.Queue()
        first, _ = ask(dispatcher, "word " * 500, told.put_nowait)
        second, _ = ask(dispatcher, "word " * 500, told.put_nowait)
        await told.get()
        first.drop()
        await told.get()
        assert not handler.closed, "the other caller still waits"
        second.drop()
        await idle.wait()
        assert handler.closed and handler.steps_done < 250
        assert not dispatcher.busy("m")

    run(scenario)


def test_each_piece_is_a_sign_of_life_for_the_watch(tmp_path: Any) -> None:
    from container.model import watch

    page = watch.Page(tmp_path / "page", create=True)
    seen: list[float] = []

    async def main() -> None:
        lanes = Lanes(1, slots=[page.slot(0, 1), page.slot(1, 1)])
        dispatcher = Dispatcher(lanes)
        handler = TellsWordByWord(0.02, lambda step: seen.append(page.inside()[0].deadline_s))
        dispatcher.open("m", handler, timeout_s=5.0)
        _, answered = ask(dispatcher, "a b c d")
        await asyncio.wait_for(answered, 20)
        lanes.close()

    asyncio.run(main())
    assert seen == sorted(seen) and seen[-1] > seen[0]
    assert page.inside() == []
