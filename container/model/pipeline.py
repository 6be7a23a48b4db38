"""Running payloads through a model.

    payloads ─decode─> inputs ─size, cut─> batches ─predict (in steps)─> outputs ─encode─> payloads
       └ one's error is its own ┘                └ a batch that fails is tried one by one ┘

An error of one payload is that caller's only. If predict raises on a batch of several, each of them is tried alone, so
that one bad input does not fail its neighbours; only running out of memory is not (trying again, smaller and with room
made, is the engine's business), nor a wrong number of answers, which is a bug that would hide. Exceptions come back as
values of the error tree (``model/attempt``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator
from typing import Any

from container import log
from container.errors import BadAnswer, Failure, OutOfMemory, ServingError
from container.handler import Claim, Handler, Parts, Ready
from container.model import adopt, apart, attempt, blame, guard, v2_bridge
from container.model.batches import cut
from container.payload import Payload

_END = object()

#: (index among the payloads, its answer)
Results = list[tuple[int, Payload | Failure]]


def answer(
    handler: Handler, payloads: list[Payload], budget: int, max_items: int
) -> Iterator[Results | Parts | Claim | None]:
    """Yield (index, Payload or Failure) for each of ``payloads``, once, as soon as a batch is done.

    budget: units of ``handler.size`` in one run, padding included. max_items: inputs in one run. None is yielded
    between the steps of long work, Parts when pieces of answers are ready (by index into ``payloads``), a Claim before
    memory is taken; the caller may go on on another thread. Never raises.
    """
    name = handler.registered_name
    answers = _answers(handler, payloads, budget, max_items)
    while True:
        # Around one step, never across a yield: what is set here belongs to the thread.
        with log.bind(model=name), guard.calling(name), adopt.no_grad():
            results = next(answers, _END)
        if results is _END:
            return
        yield results  # type: ignore[misc]


def _answers(
    handler: Handler, payloads: list[Payload], budget: int, max_items: int
) -> Iterator[Results | Parts | Claim | None]:
    failed: Results = []
    items: list[tuple[int, Any]] = []
    sizes: list[int] = []
    for index, payload in enumerate(payloads):
        read = _ask(payload.request_id, _read, handler, payload)
        if isinstance(read, ServingError):
            failed.append((index, _failure(read, handler, "decode")))
        else:
            items.append((index, read[0]))
            sizes.append(read[1])
    if failed:
        yield failed
    for batch in cut(sizes, budget, max_items if handler.batched else 1):
        yield from _run(handler, [items[place] for place in batch], payloads)


def _run(
    handler: Handler, items: list[tuple[int, Any]], payloads: list[Payload]
) -> Iterator[Results | Parts | Claim | None]:
    """One run of predict and what becomes of it."""
    run = _Run(handler, items, payloads)
    outputs = yield from run.outputs()
    if not isinstance(outputs, ServingError):
        outputs = _ask(run.request_id, _checked, outputs, len(items))
    elif len(run.rest) > 1 and not isinstance(outputs, OutOfMemory):
        yield from run.apart(outputs)
        return
    if isinstance(outputs, ServingError):
        failure = _failure(outputs, handler, "predict")
        yield [(index, failure) for index, _ in run.rest.values()]
    else:
        yield [_answered(handler, item, outputs[place], payloads) for place, item in run.rest.items()]


class _Run:
    """A batch in predict: ``rest`` by place is who has no whole answer yet, ``begun`` the places that have pieces."""

    __slots__ = ("_handler", "_payloads", "begun", "request_id", "rest")

    def __init__(self, handler: Handler, items: list[tuple[int, Any]], payloads: list[Payload]) -> None:
        self._handler = handler
        self._payloads = payloads
        self.request_id = payloads[items[0][0]].request_id if len(items) == 1 else ""
        self.rest = dict(enumerate(items))
        self.begun: set[int] = set()

    def outputs(self) -> Generator[Results | Parts | Claim | None, None, Any]:
        """Yield what the steps say before their end; return the outputs as predict gave them, or its error."""
        steps = _ask(self.request_id, self._handler.steps, [value for _, value in self.rest.values()])
        if isinstance(steps, ServingError):
            return steps
        while True:
            said = _ask(self.request_id, next, steps, _END)
            if isinstance(said, ServingError):
                return said
            if isinstance(said, Claim):
                said.move({place: index for place, (index, _) in self.rest.items()})
            if said is None or isinstance(said, Claim):
                yield said
            elif isinstance(said, (Parts, Ready)):
                wrong = _ask(self.request_id, _check_early, said, self.rest)
                if isinstance(wrong, ServingError):
                    return wrong
                yield self._early(said)
            else:
                return said

    def apart(self, error: ServingError) -> Iterator[Results | Parts | Claim | None]:
        """Run each item alone, as ``error`` may be one item's; who has pieces already is told, not run again."""
        failure = _failure(error, self._handler, "predict") if self.begun else None
        error.__cause__ = error.__context__ = error.__traceback__ = None
        for place, item in self.rest.items():
            if failure is not None and place in self.begun:
                yield [(item[0], failure)]
            else:
                yield from _run(self._handler, [item], self._payloads)

    def _early(self, said: Parts | Ready) -> Results | Parts:
        if isinstance(said, Parts):
            self.begun.update(said)
            return Parts({self.rest[place][0]: piece for place, piece in said.items()})
        return [_answered(self._handler, self.rest.pop(place), out, self._payloads) for place, out in said.items()]


def _read(handler: Handler, payload: Payload) -> tuple[Any, int]:
    """Return the input that ``payload`` holds, and its size."""
    value = _decode(handler, payload)
    return value, int(handler.size(value))


def _checked(outputs: Any, count: int) -> list[Any]:
    """Return ``outputs`` as a list. Raises BadAnswer if it is not ``count`` answers in a row."""
    if isinstance(outputs, (str, bytes, dict)) or not hasattr(outputs, "__len__"):
        what = "nothing" if outputs is _END or outputs is None else f"a {type(outputs).__name__}"
        raise BadAnswer(
            f"predict returned {what}; it must return a list with one output for each of its {count} inputs"
        )
    if len(outputs) != count:
        raise BadAnswer(
            f"predict returned {len(outputs)} outputs for {count} inputs; it must return one for each, in order"
        )
    return list(outputs)


def _check_early(early: Parts | Ready, rest: Collection[int]) -> None:
    """Raise BadAnswer if ``early`` names a place that waits for nothing, or holds pieces that are no Payloads."""
    for place, value in early.items():
        if place not in rest:
            raise BadAnswer(f"steps yielded something for place {place!r}, which waits for nothing")
        if isinstance(early, Parts) and not isinstance(value, Payload):
            raise BadAnswer(f"steps yielded a {type(value).__name__} as a piece of an answer; it must be a Payload")


def _answered(
    handler: Handler, item: tuple[int, Any], output: Any, payloads: list[Payload]
) -> tuple[int, Payload | Failure]:
    return item[0], _encoded(handler, output, payloads[item[0]])


def _encoded(handler: Handler, output: Any, payload: Payload) -> Payload | Failure:
    if isinstance(output, Payload):
        return output
    if isinstance(output, Exception):
        return _failure(_ask(payload.request_id, _raise, output), handler, "predict")
    answered = _ask(payload.request_id, _encode, handler, output, payload)
    if isinstance(answered, Payload):
        return answered
    if not isinstance(answered, ServingError):
        answered = BadAnswer(f"encode returned a {type(answered).__name__}; it must return a Payload")
    return _failure(answered, handler, "encode")


def _decode(handler: Handler, payload: Payload) -> Any:
    return v2_bridge.decode(handler, payload) if v2_bridge.applies(handler, payload) else handler.decode(payload)


def _encode(handler: Handler, output: Any, payload: Payload) -> Any:
    if v2_bridge.applies(handler, payload):
        return v2_bridge.encode(handler, output, payload)
    return handler.encode(output, payload.accept)


def _raise(error: Exception) -> None:
    raise error


def _ask(request_id: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """``attempt.call`` while answering, with the id of the request on lines that are logged meanwhile."""
    if not request_id:
        return attempt.call(blame.while_answering, function, *arguments)
    with log.bind(request=request_id):
        return attempt.call(blame.while_answering, function, *arguments)


def _failure(error: ServingError, handler: Handler, phase: str) -> Failure:
    """Return ``error`` as it travels, its cause logged and let go: the frames of its traceback hold the batch."""
    error = apart.judge(error, None)
    attempt.log_cause(error, handler.registered_name, phase)
    error.__cause__ = error.__context__ = error.__traceback__ = None
    return error.to_failure()
