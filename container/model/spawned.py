"""Archives' modules in processes that an archive spawns (``multiprocessing`` with "spawn", pools of it).

A spawned process is sent functions by the names of their modules, and those of an archive are private to this process.
So what the parent sends first (its preparation data) also carries which private packages there are, and where.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from container.model import imports


class _Packages:
    """Unpickled in a spawned process, registers the archives of its parent."""

    def __reduce__(self) -> tuple[Any, ...]:
        return imports.restore, (imports.packages(),)


def carry(spawn: ModuleType) -> None:
    """Send archives' packages to spawned processes; for ``multiprocessing.spawn`` once imported."""
    prepare = spawn.get_preparation_data
    if isinstance(getattr(prepare, "berth", None), _Packages):
        return

    def get_preparation_data(name: str) -> dict[str, Any]:
        """Return what the parent sends first, with the archives' packages."""
        return {**prepare(name), "berth": _Packages()}

    vars(get_preparation_data)["berth"] = _Packages()
    vars(spawn)["get_preparation_data"] = get_preparation_data
