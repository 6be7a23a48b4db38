"""Running payloads through a model.

    payloads ─decode─> inputs ─size, cut─> batches ─predict (in steps)─> outputs ─encode─> payloads
       └ one's error is its own ┘                └ a batch that fails is tried one by one ┘

An error of one payload is that caller's only. If predict raises on a batch of several, each of them is tried alone, so
that one bad input does not fail its neighbours; only running out of memory is not (trying again, smaller and with room
made, is the engine's business), nor a wrong number of answers, which is a bug that would hide. Exceptions come back as
values of the error tree (``model/attempt``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from container import log
from container.errors import BadAnswer, Failure, OutOfMemory, ServingError
from container.handler import Claim, Handler, Parts, Ready
from container.model import adopt, attempt, blame, guard, v2_bridge
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
    handler: Handler, batch: list[tuple[int, Any]], payloads: list[Payload]
) -> Iterator[Results | Parts | Claim | None]:
    """One run of predict and what becomes of it; who has an answer already, or pieces of one, is not run again."""
    request_id = payloads[batch[0][0]].request_id if len(batch) == 1 else ""
    steps = _ask(request_id, handler.steps, [value for _, value in batch])
    outputs: Any = steps if isinstance(steps, ServingError) else None
    rest = dict(enumerate(batch))
    begun: set[int] = set()
    while outputs is None:
        outputs = _ask(request_id, next, steps, _END)
        if isinstance(outputs, (Parts, Ready)):
            early, outputs = outputs, _ask(request_id, _check_early, outputs, rest)
            if outputs is None and isinstance(early, Parts):
                begun.update(early)
                yield Parts({rest[place][0]: piece for place, piece in early.items()})
            elif outputs is None:
                yield [_answered(handler, rest.pop(place), output, payloads) for place, output in early.items()]
        elif isinstance(outputs, Claim):
            claim, outputs = outputs, None
            yield claim
        elif outputs is None:
            yield None
    if not isinstance(outputs, ServingError):
        outputs = _ask(request_id, _checked, outputs, len(batch))
    elif len(rest) > 1 and not isinstance(outputs, OutOfMemory):
        failure = _failure(outputs, handler, "predict") if begun else None
        outputs.__cause__ = outputs.__context__ = outputs.__traceback__ = None
        for place, item in rest.items():
            if failure is not None and place in begun:
                yield [(item[0], failure)]
            else:
                yield from _run(handler, [item], payloads)
        return
    if isinstance(outputs, ServingError):
        failure = _failure(outputs, handler, "predict")
        yield [(index, failure) for index, _ in rest.values()]
        return
    yield [_answered(handler, item, outputs[place], payloads) for place, item in rest.items()]


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
    attempt.log_cause(error, handler.registered_name, phase)
    error.__cause__ = error.__context__ = error.__traceback__ = None
    return error.to_failure()
