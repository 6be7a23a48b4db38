"""Authors' models, as they come: finding the networks in whatever ``model_fn`` returned, measuring and moving them.

Authors build on the CPU and know nothing of devices. Here, not there, is decided where the weights lie: modules are
moved as they are, and the outermost forward is hooked, so that inputs go in where the weights are and outputs come back
to where the caller had the inputs. On a machine without a GPU placing does nothing at all.

torch is looked up, never imported: an archive without it must not pay for it.
Does not cover: plain tensors beside a module (they stay where the author has them), modules made after the load.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import logging
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from container.model.after_import import imported

if TYPE_CHECKING:
    from torch import Tensor, nn

#: How deep and how far objects are searched; what an author nests deeper is found by nobody.
_MAX_DEPTH = 8
_MAX_OBJECTS = 20_000
_LEAVES = (
    logging.Logger,
    str,
    bytes,
    bytearray,
    memoryview,
    int,
    float,
    complex,
    bool,
    type(None),
    type,
    types.ModuleType,
)


def no_grad() -> contextlib.AbstractContextManager[Any]:
    """Return a context without gradients; nothing where torch is not loaded."""
    torch = imported("torch")
    return contextlib.nullcontext() if torch is None else torch.no_grad()


# --- finding ---------------------------------------------------------------------------------------------------------


def _children(value: Any) -> Iterator[Any]:
    """What ``value`` holds: items, attributes, what a function or method is bound to."""
    if isinstance(value, Mapping):
        yield from list(itertools.islice(value.values(), _MAX_OBJECTS))
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from itertools.islice(value, _MAX_OBJECTS)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        yield value.__self__
    elif isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty cell
                yield cell.cell_contents
    yield from list(getattr(value, "__dict__", {}).values())
    for kind in type(value).__mro__:
        for slot in kind.__dict__.get("__slots__", ()):
            if isinstance(slot, str) and slot not in ("__dict__", "__weakref__"):
                yield getattr(value, slot, None)


def _walk(value: Any, leaf: Callable[[Any], bool]) -> Iterator[Any]:
    """Yield ``value`` and what it holds, breadth first, each once; what is a ``leaf`` is not entered."""
    seen: set[int] = set()
    level = [value]
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for each in level:
            if isinstance(each, _LEAVES) or id(each) in seen or len(seen) > _MAX_OBJECTS:
                continue
            seen.add(id(each))
            yield each
            if not leaf(each):
                below.extend(_children(each))
        level = below


class _Found(NamedTuple):
    """What ``value`` holds: outermost modules, tensors outside of them, Hugging Face pipelines, numpy arrays."""

    modules: list[nn.Module]
    tensors: list[Tensor]
    pipelines: list[Any]
    arrays: list[Any]


def _finds(value: Any) -> _Found:
    torch, numpy = imported("torch"), sys.modules.get("numpy")
    modules: Any = () if torch is None else torch.nn.Module
    tensors: Any = () if torch is None else torch.Tensor
    arrays: Any = getattr(numpy, "ndarray", ())
    found = _Found([], [], [], [])
    for each in _walk(value, lambda held: isinstance(held, (modules, tensors, arrays))):
        if isinstance(each, modules):
            found.modules.append(each)
        elif isinstance(each, tensors):
            found.tensors.append(each)
        elif isinstance(each, arrays):
            found.arrays.append(each)
        elif _is_pipeline(each):
            found.pipelines.append(each)
    inner = {id(part) for module in found.modules for part in module.modules() if part is not module}
    return found._replace(modules=[module for module in found.modules if id(module) not in inner])


def _is_pipeline(value: Any) -> bool:
    return any(
        kind.__name__ == "Pipeline" and kind.__module__.startswith("transformers.") for kind in type(value).__mro__
    )


def find_modules(value: Any) -> list[nn.Module]:
    """Return the outermost modules inside ``value``: module, dict, list, tuple, object, closure, pipeline; nested."""
    return _finds(value).modules


# --- measuring -------------------------------------------------------------------------------------------------------


def _tensors(value: Any) -> Iterator[Tensor]:
    found = _finds(value)
    for module in found.modules:
        yield from module.parameters()
        yield from module.buffers()
    yield from found.tensors


def _strided(tensor: Any) -> list[Any]:
    """The strided tensors that hold the values of ``tensor``: itself, or the parts of a sparse or wrapping one."""
    torch = imported("torch")
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [part for name in names for part in _strided(getattr(tensor, name))]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor] if tensor.layout is torch.strided and tensor.device.type != "meta" else []


def measure(value: Any) -> int:
    """Return the bytes of all tensors and arrays inside ``value``, each storage once, tied and sliced ones too."""
    storages: dict[tuple[str, int], int] = {}
    for array in _finds(value).arrays:
        whole = array
        while isinstance(whole.base, type(array)):
            whole = whole.base
        if whole.base is None:  # else it lies in a file that is mapped, or in a tensor
            storages["cpu", whole.ctypes.data] = whole.nbytes
    for tensor in _tensors(value):
        for part in _strided(tensor):
            storage = part.untyped_storage()
            storages[str(part.device), storage.data_ptr()] = storage.nbytes()
    return sum(storages.values()) + sum(_packed_bytes(part) for part in _parts(value))


def _parts(value: Any) -> set[Any]:
    """Return every module inside ``value``, inner ones too."""
    return (
        {part for module in find_modules(value) for part in module.modules()}
        if imported("torch") is not None
        else set()
    )


def _is_quantised(module: Any) -> bool:
    """Whether ``module`` is of torch's quantised ones, which pack their weights into an object that never moves."""
    return type(module).__module__.startswith("torch.ao.nn.") and ".quantized" in type(module).__module__


def _packed_bytes(module: Any) -> int:
    """Return the bytes of packed weights, which no list of parameters has; those inside another such module once."""
    unpack = getattr(module, "_weight_bias", None)
    if unpack is None or not _is_quantised(module) or any(True for _ in module.children()):
        return 0
    return sum(int(tensor.nbytes) for tensor in unpack() if tensor is not None)


def watch(value: Any) -> Callable[[], bool]:
    """Return a function that says whether all modules, tensors and arrays now inside ``value`` are gone from memory."""
    found = _finds(value)
    watched = [weakref.ref(each) for each in (*found.modules, *found.tensors, *found.arrays)]
    return lambda: all(each() is None for each in watched)


def opaque(value: Any) -> bool:
    """Return whether something inside ``value`` cannot be moved as a module: all stays where its code has put it.

    That is: sparse, quantised or subclassed tensors, lazy or meta ones, models that a library has spread over devices
    or quantised, and TorchScript whose graph names a device or whose weights are frozen into it.
    """
    torch = imported("torch")
    if torch is None:
        return False
    plain = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    for tensor in _tensors(value):
        if (
            type(tensor) not in plain
            or tensor.layout is not torch.strided
            or tensor.is_quantized
            or tensor.device.type == "meta"
        ):
            return True
    return any(_stuck(part) for part in _parts(value))


def _stuck(module: Any) -> bool:
    torch = imported("torch")
    if getattr(module, "hf_device_map", None) or getattr(module, "hf_quantizer", None) or _is_quantised(module):
        return True
    if not isinstance(module, torch.jit.ScriptModule):
        return False
    if next(module.parameters(), None) is None and next(module.buffers(), None) is None:
        return True
    graph = getattr(module, "inlined_graph", None)
    return graph is not None and "Device = prim::Constant" in str(graph)


# --- placing ---------------------------------------------------------------------------------------------------------


def moved(value: Any, device: Any) -> Any:
    """Return ``value`` with its tensors on ``device``; dict, list, tuple, named tuple and ModelOutput keep their type.

    Containers without a tensor that has to move come back as they are, the same object.
    """
    torch = imported("torch")
    if isinstance(value, torch.Tensor):
        return value if value.device == device else value.to(device)
    if isinstance(value, torch.nn.utils.rnn.PackedSequence):
        return value.to(device)  # its batch_sizes stay on the CPU
    if isinstance(value, Mapping):
        changed = {key: new for key, old in value.items() if (new := moved(old, device)) is not old}
        if not changed:
            return value
        copied: Any = copy.copy(value)
        for key, new in changed.items():
            copied[key] = new
        return copied
    if isinstance(value, (list, tuple)):
        items = [moved(item, device) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _first_device(value: Any) -> Any:
    """The device of the first tensor in ``value``, None if there is none."""
    torch = imported("torch")
    if isinstance(value, torch.Tensor):
        return value.device
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    for item in items:
        device = _first_device(item)
        if device is not None:
            return device
    return None


class _Ferry:
    """Takes inputs of a module to its device and outputs back; only at the outermost of nested calls.

    ``generate`` calls the module again for each token, and there nothing must travel.
    """

    def __init__(self) -> None:
        self.device: Any = None
        self._local = threading.local()

    def go(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the inputs of a call where the weights are; nested calls get theirs as they are."""
        trips: list[Any] = self._local.__dict__.setdefault("trips", [])
        if trips or self.device is None:
            trips.append(None)
            return arguments, named
        trips.append(_first_device((arguments, named)))
        return moved(arguments, self.device), moved(named, self.device)

    def back(self, output: Any) -> Any:
        """Return the output of the call where its inputs came from. Every ``go`` has one."""
        home = self._local.trips.pop()
        return output if home is None or home == self.device else moved(output, home)

    def before(self, module: Any, arguments: Any, named: Any) -> Any:
        """``go`` as torch's forward pre-hook."""
        return self.go(arguments, named)

    def after(self, module: Any, arguments: Any, named: Any, output: Any) -> Any:
        """``back`` as torch's forward hook."""
        return self.back(output)


def _generate(self: Any, *arguments: Any, **named: Any) -> Any:
    """``generate`` of a placed module."""
    ferry: _Ferry = self._berth_ferry
    arguments, named = ferry.go(arguments, named)
    output = None
    try:
        output = type(self).generate(self, *arguments, **named)
    finally:
        output = ferry.back(output)
    return output


def place(value: Any, device: str) -> None:
    """Move the modules inside ``value`` to ``device`` ("cpu", "cuda:0"), in place, and hook their outermost forward.

    May be called again with another device, back to "cpu" included. Hugging Face pipelines get their ``device`` set.
    """
    torch = imported("torch")
    if torch is None:
        return
    found = _finds(value)
    target = torch.device(device)
    for module in found.modules:
        ferry = module.__dict__.get("_berth_ferry")
        if ferry is None and target.type == "cpu":
            continue
        if ferry is None:
            ferry = module.__dict__["_berth_ferry"] = _Ferry()
            module.register_forward_pre_hook(ferry.before, with_kwargs=True)
            module.register_forward_hook(ferry.after, with_kwargs=True, always_call=True)
            if callable(getattr(type(module), "generate", None)):
                module.__dict__["generate"] = types.MethodType(_generate, module)
        module.to(target)
        ferry.device = None if target.type == "cpu" else target
    for pipeline in found.pipelines:
        pipeline.device = target
