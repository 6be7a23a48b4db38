"""Authors' models, as they come: finding the networks in whatever ``model_fn`` returned, and measuring them.

What is found is moved by ``model/moving``, or is opaque to it. torch is looked up, never imported: an archive without
it must not pay for it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import sys
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


class Found(NamedTuple):
    """What ``value`` holds: outermost modules, tensors outside of them, Hugging Face pipelines, numpy arrays."""

    modules: list[nn.Module]
    tensors: list[Tensor]
    pipelines: list[Any]
    arrays: list[Any]


def finds(value: Any) -> Found:
    """Return what is inside ``value``: module, dict, list, tuple, object, closure, pipeline; nested."""
    torch, numpy = imported("torch"), sys.modules.get("numpy")
    modules: Any = () if torch is None else torch.nn.Module
    tensors: Any = () if torch is None else torch.Tensor
    arrays: Any = getattr(numpy, "ndarray", ())
    found = Found([], [], [], [])
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
    """Return the outermost modules inside ``value``."""
    return finds(value).modules


# --- measuring -------------------------------------------------------------------------------------------------------


def _tensors(value: Any) -> Iterator[Tensor]:
    found = finds(value)
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
    for array in finds(value).arrays:
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
    found = finds(value)
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
