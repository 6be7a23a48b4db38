"""Acting right after a module of another package has been imported, whoever imports it and when; or if it has been.

A finder in front of the others puts a loader into the spec that runs the module and then the action. So nothing has to
be imported early just to be adjusted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]


class _Then(SourceFileLoader):
    """Runs a module, then an action on it."""

    action: Action

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then the action."""
        super().exec_module(module)
        self.action(module)


class _Finder(MetaPathFinder):
    def __init__(self) -> None:
        self.actions: dict[str, Action] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module that has an action, with a loader that takes it; None for all others."""
        action = self.actions.get(fullname)
        spec = PathFinder.find_spec(fullname, path) if action is not None else None
        if action is None or spec is None or not isinstance(spec.loader, SourceFileLoader):
            return None
        loader = _Then(fullname, str(spec.loader.path))
        loader.action = action
        spec.loader = loader
        return spec


_finder = _Finder()


def imported(name: str) -> Any:
    """Return the module ``name`` if it has been imported to its end; None also while a thread is importing it.

    Half of a module lacks names that it will have in a moment. ``_initializing`` is what ``import`` itself looks at.
    """
    module = sys.modules.get(name)
    return None if getattr(getattr(module, "__spec__", None), "_initializing", False) else module


def install(actions: Mapping[str, Action]) -> None:
    """Run the action of each module name once that module is there; now, if it is there already."""
    _finder.actions.update(actions)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    for name, action in actions.items():
        if name in sys.modules:
            action(sys.modules[name])


def remove() -> None:
    """Forget all actions."""
    _finder.actions.clear()
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
