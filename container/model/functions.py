"""Scripts in SageMaker's style as handlers: ``code/inference.py`` with functions of agreed names.

    model_fn(model_dir)                        -> model
    input_fn(data, content_type)               -> value        JSON and text/csv arrive as str, all else as bytes
    predict_fn(value, model)                   -> prediction
    output_fn(prediction, accept)              -> body, or (body, content type)
    transform_fn(model, data, content_type, accept)            in place of the three above

Each may take a trailing ``context``. What a script leaves out depends on its folder (design.md section 11): beside a
config.json that names architectures it has the Hugging Face toolkit's meaning (the model and its prediction are the
built-in task's), otherwise sagemaker-inference's (decoders and encoders by content type; model_fn and predict_fn are
required). Content types reach the script in lower case and without parameters: scripts compare them with ``==``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import msgspec

from container.errors import BadArchive, ServingError
from container.handler import Context, Handler
from container.payload import JSON, Payload
from container.protocol import codecs, media

#: function -> the arguments it has without ``context``.
ARGUMENTS = {
    "model_fn": ("model_dir",),
    "input_fn": ("data", "content_type"),
    "predict_fn": ("data", "model"),
    "output_fn": ("prediction", "accept"),
    "transform_fn": ("model", "data", "content_type", "accept"),
}
_TEXT = (JSON, "text/csv")
_CONTEXT = ("context", "ctx")


@dataclass(frozen=True, slots=True)
class ScriptContext:
    """What a script's ``context`` is: the part of multi-model-server's that does not change between requests.

    system_properties: model_dir, gpu_id (None without a GPU), batch_size, server_name.
    """

    model_name: str
    system_properties: Mapping[str, Any]
    manifest: Mapping[str, Any]


class _Data(NamedTuple):
    """A body on its way to transform_fn."""

    body: str | bytes
    content_type: str
    accept: str


def bind(function: Callable[..., Any], name: str, context: ScriptContext) -> Callable[..., Any]:
    """Return ``function`` called without context, whether it takes one or not.

    It takes one if a parameter is named so, or if it needs exactly one argument more than ``ARGUMENTS`` gives it.
    Raises BadArchive if it cannot be called with these arguments either way.
    """
    expected = ARGUMENTS[name]
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C; its author knows
        return function
    named = next((each for each in parameters if each.name in _CONTEXT), None)
    if named is not None and named.kind is named.KEYWORD_ONLY:
        _check(function, name, expected, {named.name: context})
        return lambda *given: function(*given, **{named.name: context})
    places = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    needed = [each for each in places if each.default is each.empty]
    if (named is not None and len(places) > len(expected)) or len(needed) == len(expected) + 1:
        _check(function, name, (*expected, "context"), {})
        return lambda *given: function(*given, context)
    _check(function, name, expected, {})
    return function


def _check(function: Callable[..., Any], name: str, arguments: tuple[str, ...], named: dict[str, Any]) -> None:
    try:
        inspect.signature(function).bind(*arguments, **named)
    except TypeError as error:
        wanted = ", ".join(ARGUMENTS[name])
        raise BadArchive(
            f"{name}{inspect.signature(function)} cannot be called: it is given ({wanted}), and context last if it has "
            f"a parameter for it ({error})"
        ) from error


@lru_cache(maxsize=512)
def preferred(accept: str) -> str:
    """Return the type an Accept header likes best, in lower case and without parameters; "" and ``*`` are JSON."""
    best, best_weight = JSON, 0.0
    for part in accept.split(","):
        kind, parameters = media.parse(part)
        try:
            weight = float(parameters.get("q", "1"))
        except ValueError:
            weight = 1.0
        if weight > best_weight and part.strip():
            best, best_weight = kind, weight
    return JSON if "*" in best else best


class StockModel:
    """The built-in task of a folder, called as a Hugging Face pipeline is: ``model(inputs, **parameters)``."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        """Return what the task answers, as plain Python values. Raises BadInput for what it does not take."""
        if isinstance(inputs, (bytes, bytearray)):
            payload = Payload(bytes(inputs), "application/x-image")
        else:
            payload = Payload(msgspec.json.encode({"inputs": inputs, "parameters": parameters}))
        (output,) = self.handler.predict([self.handler.decode(payload)])
        if isinstance(output, ServingError):
            raise output
        return msgspec.json.decode(self.handler.encode(output, JSON).body)


def _as_pipeline(value: Any, model: Any) -> Any:
    """predict_fn of the Hugging Face toolkit: ``{"inputs": ..., "parameters": {...}}`` to a pipeline."""
    if isinstance(value, dict) and "inputs" in value:
        return model(value["inputs"], **(value.get("parameters") or {}))
    return model(value)


class ScriptHandler(Handler):
    """The functions of one script. ``stock`` makes the folder's built-in handler, None where there is none."""

    batched = False
    speaks_v2 = True  # authors' functions get what came

    def __init__(self, module: ModuleType, stock: Callable[[], Handler] | None = None) -> None:
        self.model: Any = None
        self._stock = stock
        self._given: dict[str, Callable[..., Any]] = {}
        self._input: Callable[..., Any] | None = None
        self._output: Callable[..., Any] | None = None
        self._transform: Callable[..., Any] | None = None
        self._predict: Callable[..., Any] = _as_pipeline
        for name in ARGUMENTS:
            function = getattr(module, name, None)
            if function is not None and not callable(function):
                raise BadArchive(f"{name} of the script is a {type(function).__name__}, not a function")
            if function is not None:
                self._given[name] = function
        self._check_combination(Path(module.__file__ or "").name)

    def _check_combination(self, script: str) -> None:
        rest = [name for name in ("input_fn", "predict_fn", "output_fn") if name in self._given]
        if "transform_fn" in self._given and rest:
            raise BadArchive(f"{script} has transform_fn beside {', '.join(rest)}; it takes the place of all three")
        missing = [
            name
            for name in ("model_fn", "predict_fn")
            if name not in self._given and not (name == "predict_fn" and "transform_fn" in self._given)
        ]
        if missing and self._stock is None:
            has = ", ".join(self._given) or "none of the functions"
            raise BadArchive(
                f"{script} has no {' and no '.join(missing)} (it has {has}), and no config.json in the archive names "
                "architectures whose built-in task could take their place"
            )

    def load(self, model_dir: Path, context: Context) -> None:
        """Call model_fn, or load the built-in task in its place."""
        shown = ScriptContext(context.name, _properties(model_dir, context), MappingProxyType({}))
        call = {name: bind(function, name, shown) for name, function in self._given.items()}
        self._input = call.get("input_fn")
        self._output = call.get("output_fn")
        self._transform = call.get("transform_fn")
        self._predict = call.get("predict_fn", _as_pipeline)
        if "model_fn" in call:
            self.model = call["model_fn"](str(model_dir))
            return
        assert self._stock is not None, "checked when the script was read"
        handler = self._stock()
        handler.registered_name = context.name
        home = model_dir if (model_dir / "config.json").exists() else model_dir / "model"
        handler.load(home, context)
        self.model = StockModel(handler)

    def decode(self, payload: Payload) -> Any:
        """Return what input_fn makes of the body; without one, what the content type says."""
        if self._input is None and self._transform is None:
            return codecs.decode(payload.body, payload.content_type)
        kind, parameters = media.parse(payload.content_type)
        body: str | bytes = payload.body
        if kind in _TEXT:
            body = codecs.decode(payload.body, f"text/plain;charset={parameters.get('charset', 'utf-8')}")
        if self._transform is not None:
            return _Data(body, kind, preferred(payload.accept))
        assert self._input is not None, "one of the two is there"
        return self._input(body, kind)

    def predict(self, batch: list[Any]) -> list[Any]:
        """Return what predict_fn, or transform_fn, makes of each input."""
        if self._transform is None:
            return [self._predict(value, self.model) for value in batch]
        return [self._transform(self.model, *data) for data in batch]

    def encode(self, output: Any, accept: str) -> Payload:
        """Return what output_fn makes of the prediction; without one, the best form for ``accept``.

        output_fn may return body or (body, content type); a body of str or bytes goes out as it is.
        """
        kind = preferred(accept)
        if self._output is None and self._transform is None:
            body, content_type = codecs.encode(output, accept)
            return Payload(body, content_type)
        result = output if self._output is None else self._output(output, kind)
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str):
            result, kind = result
        if isinstance(result, str):
            if kind.startswith("text/") and "charset" not in kind and not result.isascii():
                kind = f"{kind}; charset=utf-8"
            result = result.encode()
        if isinstance(result, (bytes, bytearray, memoryview)):
            return Payload(bytes(result), kind)
        body, content_type = codecs.encode(result, accept)
        return Payload(body, content_type)


def _properties(model_dir: Path, context: Context) -> Mapping[str, Any]:
    """What multi-model-server calls system_properties; scripts look for model_dir and gpu_id."""
    gpu = context.device.partition(":")[2] or "0" if context.device.startswith("cuda") else None
    return MappingProxyType(
        {"gpu_id": gpu, "batch_size": 1, "server_name": "berth", **context.properties, "model_dir": str(model_dir)}
    )
