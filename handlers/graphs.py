"""Networks that were exported as a graph, without Python, behind one face: TorchScript and torch.export here.

    model.pt    torch.jit.save          model.pt2   torch.export.save          model.onnx   ``handlers/onnx_graph``

Which tensor goes where follows Triton's PyTorch backend: by the names of forward's arguments if all names are such,
else by a trailing ``__index`` if all have one, else in the order of config.pbtxt; outputs by index, else by order.
On a GPU nothing depends on where the graph was traced: devices that it names are replaced by the one it runs on.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils import _pytree as pytree

from container.archive.manifest import TensorSpec, Triton
from container.errors import BadAnswer, BadArchive, BadInput
from container.protocol import dtypes
from container.protocol.v2 import Tensor

_INDEX = re.compile(r".+__([0-9]{1,4})")
#: What is looked at in a .pt2 beforehand: its lists of weights and its sample inputs.
_MAX_MEMBER_BYTES = 256 << 20


class Graph(Protocol):
    """A loaded network. weights_bytes: what berth cannot see of its weights (they are no torch tensors)."""

    weights_bytes: int

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """What the network takes."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """What it answers."""

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the outputs, in the order of ``outputs``, on the CPU. Raises BadInput, BadAnswer."""


def open_graph(folder: Path, config: Triton, device: str) -> Graph:
    """Load the network that ``config`` names for ``device``; its ending tells how. Raises BadArchive, LoadFailed."""
    path, inputs, outputs = folder / config.file, config.inputs, config.outputs
    if path.suffix == ".onnx":
        from handlers.onnx_graph import OnnxGraph

        return OnnxGraph(path, inputs, outputs, device, batched=config.max_batch_size > 0)
    for what, specs in (("input", inputs), ("output", outputs)):
        if not specs:
            raise BadArchive(f"config.pbtxt declares no {what}; a PyTorch model needs them all")
    if path.suffix == ".pt2":
        return ExportedGraph(path, inputs, outputs, device)
    return ScriptGraph(path, inputs, outputs, device)


# --- names -----------------------------------------------------------------------------------------------------------


def places(names: Sequence[str], arguments: Sequence[str]) -> list[int]:
    """Return for each of ``names`` its place among ``arguments``. Raises BadArchive for places that cannot be."""
    if all(name in arguments for name in names):
        return [arguments.index(name) for name in names]
    found = _numbered(names)
    if len(set(found)) != len(found) or max(found) >= len(arguments):
        raise BadArchive(
            f"config.pbtxt declares the inputs {', '.join(names)}, but forward takes "
            f"{len(arguments)}: {', '.join(arguments)}; name them so, or name__0, name__1 and so on"
        )
    return found


def _numbered(names: Sequence[str]) -> list[int]:
    """The ``__index`` of each name if all have one, else their order."""
    matches = [_INDEX.fullmatch(name) for name in names]
    found = [int(match[1]) for match in matches if match is not None]
    return found if len(found) == len(names) else list(range(len(names)))


def picked(result: Any, outputs: Sequence[TensorSpec]) -> list[Tensor]:
    """Return what a torch network returned as the tensors that ``outputs`` declares. Raises BadAnswer."""
    names = [spec.name for spec in outputs]
    if isinstance(result, Mapping) and all(name in result for name in names):
        return [from_torch(name, result[name]) for name in names]
    values = list(result.values()) if isinstance(result, Mapping) else result
    if isinstance(values, torch.Tensor) or _is_texts(values):
        values = [values]
    if not isinstance(values, (list, tuple)):
        raise BadAnswer(f"the network returned a {type(values).__name__}, not tensors")
    chosen = _numbered(names)
    if max(chosen) >= len(values):
        raise BadAnswer(
            f"config.pbtxt declares output {names[chosen.index(max(chosen))]!r}, number {max(chosen)} "
            f"from 0, but the network returned {len(values)}"
        )
    return [from_torch(name, values[place]) for name, place in zip(names, chosen, strict=True)]


# --- values ----------------------------------------------------------------------------------------------------------


def to_torch(tensor: Tensor, device: str) -> Any:
    """Return ``tensor`` as torch's, on ``device``; BYTES as a list of texts. Raises BadInput for other bytes."""
    if tensor.datatype == "BYTES":
        return texts(tensor)
    value = torch.from_numpy(tensor.data)
    if tensor.datatype == "BF16":
        value = value.view(torch.bfloat16)
    return value.to(device)


def from_torch(name: str, value: Any) -> Tensor:
    """Return what a network returned as a Tensor. Raises BadAnswer for anything but a tensor or a list of texts."""
    if _is_texts(value):
        found = np.empty(len(value), object)
        found[:] = [text.encode() for text in value]
        return Tensor(name, "BYTES", found.shape, found)
    if not isinstance(value, torch.Tensor):
        raise BadAnswer(f"output {name!r} is a {type(value).__name__}; a tensor or a list of texts can be sent")
    value = value.detach().cpu().contiguous()
    if value.dtype is torch.bfloat16:
        data = value.view(torch.uint16).numpy()
        return Tensor(name, "BF16", data.shape, data)
    try:
        data = value.numpy()
    except TypeError as error:
        raise BadAnswer(f"output {name!r} is {value.dtype}, which has no v2 datatype") from error
    return Tensor(name, dtypes.to_name(data.dtype), data.shape, data)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def texts(tensor: Tensor) -> list[str]:
    """Return the elements of a BYTES tensor as texts. Raises BadInput for bytes that are not UTF-8."""
    try:
        return [each.decode() for each in tensor.data.ravel()]
    except UnicodeDecodeError as error:
        raise BadInput(f"input {tensor.name!r} holds bytes that are not UTF-8; this network takes texts") from error


# --- TorchScript -----------------------------------------------------------------------------------------------------


class ScriptGraph:
    """``torch.jit.save``: a traced or scripted module. It holds no Python; TorchScript's own interpreter runs it."""

    weights_bytes = 0

    def __init__(self, path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], device: str) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._device = device
        module = _load_script(path, "cpu")
        named = _device_nodes(module)
        frozen = next(module.parameters(), None) is None
        if device != "cpu" and (named or frozen):
            # What names a device or has its weights frozen in cannot be moved later: it is loaded where it runs.
            module = _load_script(path, device)
            named = _device_nodes(module)
        for graph, node in named:
            del graph
            node.s_("value", device)
        self._module = module
        arguments = [argument for argument in module.forward.schema.arguments if argument.name != "self"]
        names = [spec.name for spec in inputs]
        self._by_dict = len(arguments) == 1 and arguments[0].type.kind() == "DictType"
        self._places = [] if self._by_dict else places(names, [argument.name for argument in arguments])
        self._arguments = [argument.name for argument in arguments]
        given = {self._arguments[place] for place in self._places}
        missing = [a.name for a in arguments if a.name not in given and not a.has_default_value()]
        if missing and not self._by_dict:
            raise BadArchive(f"forward needs {', '.join(missing)} too, which config.pbtxt does not declare as an input")

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """See Graph."""
        values = {name: to_torch(tensor, self._device) for name, tensor in inputs.items()}
        if self._by_dict:
            return picked(self._module(values), self.outputs)
        named = {
            self._arguments[place]: values[spec.name]
            for spec, place in zip(self.inputs, self._places, strict=True)
            if spec.name in values
        }
        return picked(self._module(**named), self.outputs)


def _load_script(path: Path, device: str) -> Any:
    try:
        load: Any = torch.jit.load
        module = load(str(path), map_location=device)
    except (RuntimeError, ValueError) as error:
        raise BadArchive(f"{path.name} is not a TorchScript file: {str(error).splitlines()[0][:300]}") from error
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def _device_nodes(module: Any) -> list[tuple[Any, Any]]:
    """The constants of ``module``'s graphs that name a device, each with its graph, which keeps it alive."""
    found: list[tuple[Any, Any]] = []
    for part in module.modules():
        if not part._c._has_method("forward"):
            continue
        graph = part.graph
        for node in graph.findAllNodes("prim::Constant"):
            if "value" in node.attributeNames() and str(node.output().type()) == "Device":
                found.append((graph, node))
    return found


# --- torch.export ----------------------------------------------------------------------------------------------------


class ExportedGraph:
    """``torch.export.save``: TorchScript's successor.

    The file names the functions of its graph, any that can be reached from torch, so it counts as its author's code: it
    never runs in the engine, and BERTH_ALLOW_CODE=off refuses it.
    """

    weights_bytes = 0

    def __init__(self, path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], device: str) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._device = device
        _refuse_pickles(path)
        try:
            program = torch.export.load(str(path))
        except (RuntimeError, ValueError, KeyError, AssertionError) as error:
            raise BadArchive(f"{path.name} is not a torch.export file: {str(error)[:300]}") from error
        if device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        names = [str(name) for name in program.graph_signature.user_inputs]
        self._order = places([spec.name for spec in inputs], names)
        if len(self._order) != len(names):
            raise BadArchive(f"the exported network takes {', '.join(names)}; config.pbtxt declares {len(self._order)}")
        self._spec = program.call_spec.in_spec
        self._module = program.module()

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """See Graph."""
        flat: list[Any] = [None] * len(self._order)
        for spec, place in zip(self.inputs, self._order, strict=True):
            if spec.name in inputs:
                flat[place] = to_torch(inputs[spec.name], self._device)
        arguments, named = pytree.tree_unflatten(flat, self._spec)
        return picked(pytree.tree_leaves(self._module(*arguments, **named)), self.outputs)


def _refuse_pickles(path: Path) -> None:
    """Raise BadArchive where torch.export.load would unpickle objects other than tensors, or run compiled code."""
    try:
        with zipfile.ZipFile(path) as file:
            for name in file.namelist():
                if "/data/aotinductor/" in name:
                    raise BadArchive(
                        f"{path.name} is compiled for one kind of machine (AOTInductor); use torch.export.save"
                    )
                if name.endswith(("_weights_config.json", "_constants_config.json")):
                    _check_payloads(path, json.loads(_member(file, name)))
                elif name.endswith(".pt"):  # the sample inputs, which torch.export.load unpickles one way or the other
                    torch.load(io.BytesIO(_member(file, name)), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise BadArchive(f"{path.name} holds pickled objects that are no tensors; those are not loaded") from error
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError) as error:
        raise BadArchive(f"{path.name} is not a torch.export file: {str(error)[:300]}") from error


def _member(file: zipfile.ZipFile, name: str) -> bytes:
    if file.getinfo(name).file_size > _MAX_MEMBER_BYTES:
        raise ValueError(f"{name} unpacks to more than {_MAX_MEMBER_BYTES} bytes")
    return file.read(name)


def _check_payloads(path: Path, config: Any) -> None:
    entries = config.get("config") if isinstance(config, dict) else None
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        plain = isinstance(entry, dict) and str(entry.get("path_name")).startswith(("weight_", "tensor_"))
        if not plain or entry.get("use_pickle"):
            raise BadArchive(f"{path.name} holds {name!r} pickled; those are not loaded: keep only plain tensors in it")
