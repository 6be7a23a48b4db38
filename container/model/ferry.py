"""Inputs follow the weights of authors' modules, and outputs come back to where the caller had the inputs.

Authors build on the CPU and know nothing of devices. Here, not there, is decided where the weights lie
(``model/moving``), so the outermost forward of a module that may be moved is hooked.
"""

from __future__ import annotations

import copy
import functools
import threading
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from container.model.after_import import imported

if TYPE_CHECKING:
    from torch import nn


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


class Ferry:
    """Takes inputs of a module to ``device`` and outputs back; only at the outermost of nested calls.

    ``generate`` calls the module again for each token, and there nothing must travel. device: where the weights lie;
    None = in RAM, and nothing travels.
    """

    def __init__(self) -> None:
        self.device: Any = None
        self._local = threading.local()

    def __getstate__(self) -> Any:
        """Return what goes along when an author copies or pickles the module."""
        return (self.device,)

    def __setstate__(self, state: Any) -> None:
        """Be the ferry of a copy."""
        (self.device,) = state
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

    def around(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``inner`` with ``go`` before it and ``back`` behind it."""

        def trip(*arguments: Any, **named: Any) -> Any:
            """Call ``inner`` where the weights are."""
            arguments, named = self.go(arguments, named)
            output = None
            try:
                output = inner(*arguments, **named)
            finally:
                output = self.back(output)
            return output

        return trip


def _generate(self: Any, *arguments: Any, **named: Any) -> Any:
    """``generate`` of a module that has a ferry."""
    ferry: Ferry = self._berth_ferry
    return ferry.around(functools.partial(type(self).generate, self))(*arguments, **named)


def of(module: nn.Module) -> Ferry:
    """Return the ferry of ``module``, whose forward is hooked the first time."""
    torch: Any = imported("torch")
    ferry: Ferry | None = module.__dict__.get("_berth_ferry")
    if ferry is None:
        ferry = module.__dict__["_berth_ferry"] = Ferry()
        if isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
            module.__dict__["forward"] = ferry.around(module.forward)
            return ferry
        module.register_forward_pre_hook(ferry.before, with_kwargs=True)
        module.register_forward_hook(ferry.after, with_kwargs=True, always_call=True)
        if callable(getattr(type(module), "generate", None)):
            module.__dict__["generate"] = types.MethodType(_generate, module)
    return ferry
