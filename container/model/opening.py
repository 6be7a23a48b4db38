"""Bringing a model up: from a Manifest to a Handler whose weights are placed and measured.

    import the archive's code ──> build (Handler.load) ──> place on the device ──> measure

What fails leaves nothing of the model in the process, and the cause is in the log with the model's name.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from container import log
from container.archive.manifest import Manifest
from container.errors import ServingError
from container.handler import Context, Handler, Weights
from container.model import adopt, apart, attempt, blame, guard, moving
from container.model.imports import Namespace
from container.model.moving import Adopted
from container.model.resolve import combine, resolve
from container.payload import Payload

_log = log.get(__name__)


@dataclass(slots=True)
class Opened:
    """A model that answers. bytes: measured, of its weights. times_ms: import, load, place.

    close: drops the model and its modules; what it held is free when this returns, unless its code still runs.
    adopted: what of it can be moved between the device and RAM; None = nothing, or not all that lies on the device.
    everything: returns what its modules and tensors are found in, () once it is closed.
    """

    handler: Handler
    bytes: int
    times_ms: dict[str, float]
    close: Callable[[], None]
    adopted: Adopted | None = None
    everything: Callable[[], tuple[Any, ...]] = tuple


class Device(NamedTuple):
    """What lies under ``Context.device`` for authors' modules.

    rehearsed: it is the CPU, and stands for a device with memory of its own. keep: what is moved to it may keep its
    copy in RAM, and can be lowered without being copied back.
    """

    rehearsed: bool = False
    keep: bool = False


NOTHING_KEPT = Device()


@dataclass(slots=True)
class _Opening:
    """A load on its way."""

    name: str
    manifest: Manifest
    namespace: Namespace | None
    device: Device
    weights: list[Weights] = field(default_factory=list)
    times_ms: dict[str, float] = field(default_factory=dict)

    def timed(self, phase: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the author's function returns. Raises BadArchive, OutOfMemory or LoadFailed, already logged."""
        started = time.perf_counter()
        result = attempt.call(blame.while_loading, function, *arguments)
        self.times_ms[phase] = round((time.perf_counter() - started) * 1e3, 3)
        if isinstance(result, ServingError):
            result = apart.judge(result, self.namespace) if self.namespace is not None else result
            attempt.log_cause(result, self.name, phase)
            raise result from None  # the cause is logged; its frames would keep half a model in memory
        return result

    def recording(self, context: Context) -> Context:
        """Return ``context`` with an open_weights that remembers what it opened, for its bytes."""
        opener = context.open_weights
        if opener is None:
            return context

        def open_weights(folder: Path) -> Weights:
            """Open the weights and remember them."""
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


def open_model(manifest: Manifest, context: Context, device: Device = NOTHING_KEPT) -> Opened:
    """Import, build and place the model of ``manifest`` on ``context.device``.

    Raises BadArchive, OutOfMemory or LoadFailed with the author's message; then nothing of the model is left.
    """
    if manifest.kind == "tasks":
        return _open_tasks(manifest, context, device)
    namespace = Namespace(context.name, Path(manifest.code_dir)) if manifest.code_dir and manifest.program else None
    attempt.forget(context.name)
    opening = _Opening(context.name, manifest, namespace, device)
    try:
        with log.bind(model=context.name):
            if namespace is None:
                return _open(opening, context)
            with guard.loading(context.name), namespace.aliased():
                return _open(opening, context)
    except ServingError:
        attempt.forget(context.name)
        if namespace is not None:
            namespace.close()
            gc.collect()
        raise


def _open(opening: _Opening, context: Context) -> Opened:
    manifest, namespace = opening.manifest, opening.namespace
    handler: Handler = opening.timed("import", resolve, manifest, namespace)
    handler.registered_name = context.name
    opening.timed("load", handler.load, Path(manifest.model_dir), opening.recording(context))
    adopted = _adopt(opening, handler, context)
    measured = opening.bytes(handler)
    gone = adopt.watch(opening.everything(handler)) if namespace is not None else None

    def close() -> None:
        """Drop the model and its modules."""
        vars(handler).clear()  # whoever still has the handler no longer has the model
        opening.weights.clear()
        if adopted is not None:
            adopted.drop()
        attempt.forget(context.name)
        if namespace is not None:
            namespace.close()
        if gone is not None and not gone():
            gc.collect()  # an author's objects refer to each other in a circle; a tenth of a second, so only then

    return Opened(handler, measured, opening.times_ms, close, adopted, lambda: opening.everything(handler))


def _adopt(opening: _Opening, handler: Handler, context: Context) -> Adopted | None:
    """Move what can be moved to the device; nothing happens where there is none."""
    if (context.device == "cpu" and not opening.device.rehearsed) or opening.weights:
        return None
    everything = opening.everything(handler)
    if adopt.opaque(everything):
        _log.warning("the weights cannot be moved by berth and stay where the code has put them")
        return None
    move = functools.partial(moving.adopt_all, everything, context.device, rehearsed=opening.device.rehearsed)
    adopted: Adopted | None = opening.timed("place", move)
    if adopted is not None and not opening.device.keep:
        adopted.forget()
    return adopted


def _open_tasks(manifest: Manifest, context: Context, device: Device) -> Opened:
    """Open each of several models; one that does not open closes those before it, and is named."""
    parts: dict[str, Opened] = {}

    adopted: Adopted | None = None

    def close() -> None:
        """Close each part."""
        for part in parts.values():
            part.close()
        if adopted is not None:
            adopted.drop()

    try:
        for name, part in manifest.tasks.items():
            properties = {**context.properties, "model_dir": part.model_dir}
            inner = replace(context, options=part.settings.options, properties=properties)
            try:
                parts[name] = open_model(part, inner, device)
            except ServingError as error:
                raise type(error)(f"in {name}/: {error}", status=error.status) from error
        handler = combine(manifest, {name: part.handler for name, part in parts.items()})
    except ServingError:
        close()
        raise
    handler.registered_name = context.name
    adopted = moving.together([part.adopted for part in parts.values()])
    times_ms = {f"{name}.{phase}": ms for name, part in parts.items() for phase, ms in part.times_ms.items()}

    def everything() -> tuple[Any, ...]:
        """Return what is in the parts."""
        return tuple(each for part in parts.values() for each in part.everything())

    return Opened(handler, sum(part.bytes for part in parts.values()), times_ms, close, adopted, everything)


def example_of(handler: Handler) -> Payload | None:
    """Return a request that ``handler`` takes, None if its author names none."""
    return None if handler.example is Handler.example else handler.example
