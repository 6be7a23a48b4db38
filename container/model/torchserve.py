"""What handlers import of TorchServe, which is no longer maintained: its base class, small and compatible.

Where the package itself is installed (an archive's requirements.txt may name it), that one is used. Offered are
``ts.torch_handler.base_handler.BaseHandler``, ``ts.context.Context``, ``ts.handler_utils.timer.timed`` and
``ts.utils.util.PredictionException`` and ``load_label_mapping``; and multi-model-server's
``mms.service.PredictionException``. Does not cover: the ready-made handlers (image_classifier and its siblings need
torchvision), torch.compile, ONNX, Captum, request envelopes.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from container.errors import BadArchive
from container.model.service_context import Context

#: Handlers that a manifest may name without bringing them.
DEFAULT_HANDLERS = frozenset(
    {"image_classifier", "image_segmenter", "object_detector", "text_classifier", "densenet_handler", "dali_handler"}
)
_Function = TypeVar("_Function", bound=Callable[..., Any])


class PredictionException(Exception):
    """What a handler raises to choose the status of its answer."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code


class BaseHandler:
    """The template of a handler: load a model file, then preprocess, inference, postprocess for each batch.

    The model file is the manifest's ``serializedFile``: TorchScript, or, with a ``modelFile`` that defines one class of
    network, that network's state_dict (read with weights_only).
    """

    def __init__(self) -> None:
        self.model: Any = None
        self.mapping: dict[str, Any] | None = None
        self.device: Any = None
        self.map_location = "cpu"
        self.initialized = False
        self.context: Context | None = None
        self.manifest: dict[str, Any] = {}
        self.model_yaml_config: dict[str, Any] = {}
        self.model_pt_path: str | None = None

    def initialize(self, context: Context) -> None:
        """Load the model of the archive."""
        import torch

        properties = context.system_properties
        gpu = properties.get("gpu_id")
        if gpu is not None and torch.cuda.is_available():
            self.map_location = "cuda"
        self.device = torch.device("cpu" if self.map_location == "cpu" else f"cuda:{gpu}")
        self.context, self.manifest = context, context.manifest
        self.model_yaml_config = context.model_yaml_config
        told = self.manifest.get("model") or {}
        folder = Path(properties["model_dir"])
        weights = folder / told["serializedFile"] if told.get("serializedFile") else None
        self.model_pt_path = str(weights) if weights is not None else None
        if told.get("modelFile"):
            self.model = _network(told["modelFile"])
            if weights is not None:
                self.model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        elif weights is not None and weights.suffix in (".pt", ".pth"):
            self.model = torch.jit.load(str(weights), map_location=self.device)  # type: ignore[no-untyped-call]
        else:
            raise BadArchive("the manifest names neither a modelFile nor a serializedFile that is TorchScript (.pt)")
        self.model.to(self.device)
        self.model.eval()
        names = folder / "index_to_name.json"
        self.mapping = load_label_mapping(str(names)) if names.is_file() else None
        self.initialized = True

    def preprocess(self, data: Any) -> Any:
        """Return the batch as one tensor."""
        import torch

        return torch.as_tensor(data, device=self.device)

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what the network makes of the batch."""
        import torch

        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    def postprocess(self, data: Any) -> list[Any]:
        """Return one answer for each request."""
        answers: list[Any] = data.tolist()
        return answers

    def handle(self, data: list[dict[str, Any]], context: Context) -> list[Any]:
        """Return one answer for each request of the batch."""
        started = time.perf_counter()
        self.context = context
        answers = self.postprocess(self.inference(self.preprocess(data)))
        context.metrics.add_time("HandlerTime", round((time.perf_counter() - started) * 1e3, 2), None, "ms")
        return answers

    def get_device(self) -> Any:
        """Return the device that the model is on."""
        return self.device


def timed(function: _Function) -> _Function:
    """Mark a step of a handler; berth measures batches itself."""
    return function


def load_label_mapping(mapping_file_path: str) -> dict[str, Any]:
    """Return index_to_name.json: class number, as text, to label."""
    with Path(mapping_file_path).open(encoding="utf-8") as file:
        mapping = json.load(file)
    if not isinstance(mapping, dict):
        raise BadArchive(f"{Path(mapping_file_path).name} must hold one JSON object, number to label")
    inner = mapping.get("object_type_names")
    return inner if isinstance(inner, dict) else mapping


def _network(file: str) -> Any:
    """Return the network that the archive's ``modelFile`` defines, with random weights."""
    import torch

    module = importlib.import_module(file.removesuffix(".py").rpartition("/")[2])
    classes = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, torch.nn.Module) and each.__module__ == module.__name__
    ]
    if len(classes) != 1:
        names = ", ".join(each.__name__ for each in classes) or "none"
        raise BadArchive(f"{file} must define exactly one class of network; it defines {names}")
    return classes[0]()


_OFFERED: dict[str, dict[str, Any]] = {
    "ts": {},
    "ts.context": {"Context": Context},
    "ts.handler_utils": {},
    "ts.handler_utils.timer": {"timed": timed},
    "ts.torch_handler": {},
    "ts.torch_handler.base_handler": {"BaseHandler": BaseHandler},
    "ts.utils": {},
    "ts.utils.util": {"PredictionException": PredictionException, "load_label_mapping": load_label_mapping},
    "ts.service": {"PredictionException": PredictionException},
    "mms": {},
    "mms.service": {"PredictionException": PredictionException},
}


def offer() -> None:
    """Let handlers import what is offered, unless the packages themselves are installed."""
    for package in ("ts", "mms"):
        if package in sys.modules or find_spec(package) is not None:
            continue
        for name, contents in _OFFERED.items():
            if name.partition(".")[0] == package:
                module = ModuleType(name)
                vars(module).update(contents, __path__=[])
                sys.modules[name] = module
                parent, _, last = name.rpartition(".")
                if parent:
                    setattr(sys.modules[parent], last, module)
