"""A model as code: bringing it up, and running payloads through it.

    payloads ─decode─> inputs ─size, cut─> batches ─predict (in steps)─> outputs ─encode─> payloads
       └ one's error is its own ┘                └ a batch that fails is tried one by one ┘

An error of one payload is that caller's only. If predict raises on a batch of several, each of them is tried alone, so
that one bad input does not fail its neighbours; only running out of memory is not (trying again, smaller and with room
made, is the engine's business), nor a wrong number of answers, which is a bug that would hide.

``_attempt`` is the one function through which authors' code is called, and the one broad ``except`` for it. Exceptions
come back as values of the error tree; the traceback goes to the log, once, with the model's name.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from container import log
from container.archive.manifest import Manifest
from container.errors import BadAnswer, Failure, OutOfMemory, ServingError
from container.handler import Context, Handler, Parts, Ready, Weights
from container.model import adopt, blame, guard, v2_bridge
from container.model.batches import cut
from container.model.imports import Namespace
from container.model.resolve import combine, resolve
from container.payload import Payload

_log = log.get(__name__)
_END = object()
#: Exit status of a process whose device answers no more.
POISONED = 70

#: model -> places of its code whose tracebacks are in the log already.
_reported: dict[str, set[object]] = {}
_MAX_REPORTED = 100

Results = list[tuple[int, Payload | Failure]]


@dataclass(slots=True)
class Opened:
    """A model that answers. bytes: measured, of its weights. times_ms: import, load, place.

    close: drops the model and its modules; what it held is free when this returns, unless its code still runs.
    """

    handler: Handler
    bytes: int
    times_ms: dict[str, float]
    close: Callable[[], None]


# --- bringing up -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Opening:
    """A load on its way."""

    name: str
    manifest: Manifest
    namespace: Namespace | None
    weights: list[Weights] = field(default_factory=list)
    times_ms: dict[str, float] = field(default_factory=dict)

    def timed(self, phase: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the author's function returns. Raises BadArchive, OutOfMemory or LoadFailed, already logged."""
        started = time.perf_counter()
        result = _attempt(blame.while_loading, function, *arguments)
        self.times_ms[phase] = round((time.perf_counter() - started) * 1e3, 3)
        if isinstance(result, ServingError):
            _log_cause(result, self.name, phase)
            raise result from None  # the cause is logged; its frames would keep half a model in memory
        return result

    def recording(self, context: Context) -> Context:
        """Return ``context`` with an open_weights that remembers what it opened, for its bytes."""
        opener = context.open_weights
        if opener is None:
            return context

        def open_weights(folder: Path) -> Weights:
            self.weights.append(opener(folder))
            return self.weights[-1]

        return replace(context, open_weights=open_weights)

    def everything(self, handler: Handler) -> tuple[Any, ...]:
        """What may hold modules and tensors: the handler, and what the archive's modules keep in globals."""
        return (handler, *(self.namespace.globals() if self.namespace is not None else ()))

    def bytes(self, handler: Handler) -> int:
        """Bytes of the weights: as their opener counts them, else as found in the handler."""
        if not self.weights:
            return adopt.measure(self.everything(handler)) + handler.weights_bytes
        counted = [getattr(each, "bytes", None) for each in self.weights]
        return sum(
            count if isinstance(count, int) else adopt.measure(each)
            for count, each in zip(counted, self.weights, strict=True)
        )


def open_model(manifest: Manifest, context: Context) -> Opened:
    """Import, build and place the model of ``manifest`` on ``context.device``.

    Raises BadArchive, OutOfMemory or LoadFailed with the author's message; then nothing of the model is left.
    """
    if manifest.kind == "tasks":
        return _open_tasks(manifest, context)
    namespace = Namespace(context.name, Path(manifest.code_dir)) if manifest.code_dir and manifest.program else None
    _reported.pop(context.name, None)
    opening = _Opening(context.name, manifest, namespace)
    try:
        with log.bind(model=context.name):
            if namespace is None:
                return _open(opening, context)
            with guard.loading(context.name), namespace.aliased():
                return _open(opening, context)
    except ServingError:
        _reported.pop(context.name, None)
        if namespace is not None:
            namespace.close()
            gc.collect()
        raise


def _open(opening: _Opening, context: Context) -> Opened:
    manifest, namespace = opening.manifest, opening.namespace
    handler: Handler = opening.timed("import", resolve, manifest, namespace)
    handler.registered_name = context.name
    opening.timed("load", handler.load, Path(manifest.model_dir), opening.recording(context))
    if context.device != "cpu" and not opening.weights:
        if adopt.opaque(opening.everything(handler)):
            _log.warning("the weights cannot be moved by berth and stay where the code has put them")
        else:
            opening.timed("place", adopt.place, opening.everything(handler), context.device)
    measured = opening.bytes(handler)
    gone = adopt.watch(opening.everything(handler)) if namespace is not None else None

    def close() -> None:
        vars(handler).clear()  # whoever still has the handler no longer has the model
        opening.weights.clear()
        _reported.pop(context.name, None)
        if namespace is not None:
            namespace.close()
        if gone is not None and not gone():
            gc.collect()  # an author's objects refer to each other in a circle; a tenth of a second, so only then

    return Opened(handler, measured, opening.times_ms, close)


def _open_tasks(manifest: Manifest, context: Context) -> Opened:
    """Open each of several models; one that does not open closes those before it, and is named."""
    parts: dict[str, Opened] = {}

    def close() -> None:
        for part in parts.values():
            part.close()

    try:
        for name, part in manifest.tasks.items():
            properties = {**context.properties, "model_dir": part.model_dir}
            inner = replace(context, options=part.settings.options, properties=properties)
            try:
                parts[name] = open_model(part, inner)
            except ServingError as error:
                raise type(error)(f"in {name}/: {error}", status=error.status) from error
        handler = combine(manifest, {name: part.handler for name, part in parts.items()})
    except ServingError:
        close()
        raise
    handler.registered_name = context.name
    times_ms = {f"{name}.{phase}": ms for name, part in parts.items() for phase, ms in part.times_ms.items()}
    return Opened(handler, sum(part.bytes for part in parts.values()), times_ms, close)


def example_of(handler: Handler) -> Payload | None:
    """Return a request that ``handler`` takes, None if its author names none."""
    return None if handler.example is Handler.example else handler.example


# --- answering -------------------------------------------------------------------------------------------------------


def answer(handler: Handler, payloads: list[Payload], budget: int, max_items: int) -> Iterator[Results | Parts | None]:
    """Yield (index, Payload or Failure) for each of ``payloads``, once, as soon as a batch is done.

    budget: units of ``handler.size`` in one run, padding included. max_items: inputs in one run. None is yielded
    between the steps of long work, Parts when pieces of answers are ready (by index into ``payloads``); the caller may
    go on on another thread. Never raises.
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
) -> Iterator[Results | Parts | None]:
    failed: Results = []
    items: list[tuple[int, Any]] = []
    sizes: list[int] = []
    for index, payload in enumerate(payloads):
        value = _ask(payload.request_id, _decode, handler, payload)
        size = value if isinstance(value, ServingError) else _ask(payload.request_id, _size, handler, value)
        if isinstance(size, ServingError):
            failed.append((index, _failure(size, handler, "decode")))
        else:
            items.append((index, value))
            sizes.append(size)
    if failed:
        yield failed
    for batch in cut(sizes, budget, max_items if handler.batched else 1):
        yield from _run(handler, [items[place] for place in batch], payloads)


def _run(handler: Handler, batch: list[tuple[int, Any]], payloads: list[Payload]) -> Iterator[Results | Parts | None]:
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


def _size(handler: Handler, value: Any) -> int:
    return int(handler.size(value))


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


def _attempt(verdict: Callable[[BaseException], ServingError], function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what ``function`` returns, or the ServingError that ``verdict`` makes of what it raises."""
    try:
        return function(*arguments)
    except ServingError as error:
        return error
    except (Exception, SystemExit) as error:  # noqa: BLE001 - authors' code may raise anything, and exit
        if blame.poisoned(error):
            _log.critical("the CUDA context of this process is broken, so it ends: %s", blame.describe(error))
            os._exit(POISONED)
        failed = verdict(error)
        failed.__cause__ = error
        return failed


def _ask(request_id: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """``_attempt`` while answering, with the id of the request on lines that are logged meanwhile."""
    if not request_id:
        return _attempt(blame.while_answering, function, *arguments)
    with log.bind(request=request_id):
        return _attempt(blame.while_answering, function, *arguments)


def _failure(error: ServingError, handler: Handler, phase: str) -> Failure:
    """Return ``error`` as it travels, its cause logged and let go: the frames of its traceback hold the batch."""
    _log_cause(error, handler.registered_name, phase)
    error.__cause__ = error.__context__ = error.__traceback__ = None
    return error.to_failure()


def _log_cause(error: ServingError, name: str, phase: str) -> None:
    """Log the author's exception: with its traceback the first time, in one line when the same place fails again."""
    cause = error.__cause__
    if cause is None or error.code.startswith("request."):  # the caller's mistake, and the caller is told
        return
    place = cause.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = (type(cause), place.tb_frame.f_code.co_filename, place.tb_lineno) if place is not None else None
    seen = _reported.setdefault(name, set())
    again = where in seen
    if len(seen) < _MAX_REPORTED:
        seen.add(where)
    _log.error("failed in %s: %s", phase, error.message, exc_info=None if again else cause)
