"""Adopted modules between RAM and the device: what was found in an author's model, moved as it is and brought back.

    lift     each parameter and buffer gets a copy on the device; what it was in RAM is kept, as its home
    lower    parameters go home as they were; buffers, and parameters that were written to, are written back there
    forget   homes are given up: what is on the device stays there

``Module._apply``, by which ``Module.to`` does its work, does it here: parameters stay the objects that the author may
hold, and shared ones stay shared. On a rehearsed device copies are clones in RAM. On a machine without a device none of
this happens. Nothing of the model may run meanwhile.

Does not cover: tensors that are neither parameters nor buffers (they stay where the author has them), modules made
after the load, and parameters written through ``.data``, of which torch keeps no count: such a change is gone after
lowering.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from container.model import adopt, ferry
from container.model.after_import import imported

if TYPE_CHECKING:
    from torch import Tensor, device


@dataclass(slots=True)
class _Home:
    """Where a tensor came from. tensor: what its module has on the device. memory: what it was in RAM.

    mark: of a parameter that has just arrived; None = it counts as written to, as buffers do.
    """

    tensor: Tensor
    memory: Tensor
    is_weight: bool
    mark: tuple[int, int] | None = None
    is_back: bool = False


class Adopted:
    """The modules of one model, which lie in RAM at first. rehearsed: ``device`` is a CPU that stands for one."""

    def __init__(self, found: adopt.Found, target: device, *, rehearsed: bool) -> None:
        self._modules: list[Any] = list(found.modules)  # torch's own _apply is not annotated
        self._pipelines = found.pipelines
        self._target = target
        self._rehearsed = rehearsed
        self._homes: dict[int, _Home] = {}
        #: Whether all of it is known to lie in RAM.
        self.in_ram = True
        self.bytes = adopt.measure(found.modules)

    def lift(self) -> None:
        """Bring everything to the device, and inputs with it.

        Raises what torch does; then all of it is in RAM, unless that failed, too (``in_ram``).
        """
        torch: Any = imported("torch")
        weights = {id(weight) for module in self._modules for weight in module.parameters()}
        copies: dict[int, Tensor] = {}
        self.in_ram = False
        try:
            with torch.no_grad():
                for module in self._modules:
                    module._apply(functools.partial(self._up, weights, copies))
        except BaseException:
            self._note()
            self.lower()
            raise
        self._note()
        self._direct(self._target)

    def lower(self) -> None:
        """Bring everything back to RAM; its bytes on the device are free when this returns."""
        torch: Any = imported("torch")
        with torch.no_grad():
            for module in self._modules:
                module._apply(self._down)
        self._homes.clear()
        self._direct(None)
        self.in_ram = True
        if self._target.type == "cuda":
            torch.cuda.empty_cache()

    def forget(self) -> None:
        """Give up what lies in RAM of what is on the device."""
        self._homes.clear()

    def drop(self) -> None:
        """Refer to nothing of the model any more."""
        self._homes.clear()
        self._modules, self._pipelines = [], []

    def _note(self) -> None:
        """Know parameters as they are now that all have come: a module may have laid its own out anew."""
        for home in self._homes.values():
            home.mark = _mark(home.tensor) if home.is_weight else None

    def _up(self, weights: set[int], copies: dict[int, Tensor], tensor: Tensor) -> Tensor:
        """Return ``tensor`` on the device; copies: of buffers that have come, by what they were in RAM."""
        if id(tensor) in self._homes or (tensor.device == self._target and not self._rehearsed):
            return tensor
        if id(tensor) in copies:  # several modules have it
            return copies[id(tensor)]
        torch: Any = imported("torch")
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():  # or its copy would be of another kind
            there = tensor.to(self._target, copy=True)
        if id(tensor) in weights:
            self._homes[id(tensor)] = _Home(tensor, tensor.data, True)
        else:  # becomes another object
            self._homes[id(there)] = _Home(there, tensor, False)
            copies[id(tensor)] = there
        return there

    def _down(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` in RAM, at its home if it has one."""
        home = self._homes.get(id(tensor))
        if home is None:  # it was put there meanwhile, is back already, or never had one
            return tensor.to("cpu")
        if not home.is_back:
            if home.mark is None or home.mark != _mark(tensor):
                home.memory = _written(tensor, home.memory)
            home.is_back = True
        return home.memory

    def _direct(self, target: device | None) -> None:
        torch: Any = imported("torch")
        for module in self._modules:
            ferry.of(module).device = target
        for pipeline in self._pipelines:
            pipeline.device = torch.device("cpu") if target is None else target


def adopt_all(value: Any, target: str, *, rehearsed: bool = False) -> Adopted | None:
    """Lift the modules inside ``value`` to ``target``, such as "cuda:0"; return them.

    None: there is nothing to move, or something lies on the device beside them, and would stay there.
    """
    torch = imported("torch")
    found = adopt.finds(value)
    if torch is None or not found.modules:
        return None
    adopted = Adopted(found, torch.device(target), rehearsed=rehearsed)
    adopted.lift()
    stays = any(tensor.device.type != "cpu" for tensor in found.tensors)
    return None if stays or not adopted.bytes else adopted


def together(parts: Sequence[Adopted | None]) -> Adopted | None:
    """Return the modules of several models as those of one; None if one of them cannot be moved."""
    whole = [part for part in parts if part is not None]
    if not whole or len(whole) < len(parts):
        for part in whole:
            part.forget()
        return None
    first = whole[0]
    modules = [module for part in whole for module in part._modules]
    found = adopt.Found(modules, [], [pipeline for part in whole for pipeline in part._pipelines], [])
    made = Adopted(found, first._target, rehearsed=first._rehearsed)
    for part in whole:
        made._homes |= part._homes
    made.in_ram = False
    return made


def _mark(tensor: Tensor) -> tuple[int, int] | None:
    """Return what changes when ``tensor`` is written to or laid out anew; None where torch does not count."""
    try:
        return tensor._version, tensor.data_ptr()
    except RuntimeError:  # made in inference mode
        return None


def _written(tensor: Tensor, memory: Tensor) -> Tensor:
    """Return what ``tensor`` is in RAM: ``memory``, written to if it differs, or another if it cannot hold the same.

    What is equal is not written: the memory may be a file's, mapped to be read only.
    """
    torch: Any = imported("torch")
    back = tensor.to("cpu")
    overlaps = any(step == 0 and size > 1 for step, size in zip(memory.stride(), memory.shape, strict=True))
    if overlaps or back.shape != memory.shape or back.dtype != memory.dtype:
        return tensor.to("cpu", copy=True)
    if not torch.equal(back, memory):
        with torch.inference_mode(memory.is_inference()), torch.no_grad():
            memory.copy_(back)
    return memory
