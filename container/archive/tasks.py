"""Several models in one archive, each in a sub-folder of its own: what they are together.

They are loaded, sunk and timed as one model and share one process, so the archive's own ``berth.json`` speaks for all;
without one, each wish of a part is granted to the whole. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from container.archive.architectures import names_of
from container.archive.manifest import Berth, Manifest
from container.errors import BadArchive


def united(folder: Path, parts: Mapping[str, Manifest], own: Berth | None, identity: str) -> Manifest:
    """Return the Manifest of ``folder``, whose sub-folders are ``parts``; ``own`` is its berth.json, if it has one.

    Raises BadArchive when several parts ask for packages: there is one environment.
    """
    asking = [name for name, part in parts.items() if part.requirements]
    if len(asking) > 1:
        raise BadArchive(
            f"{' and '.join(asking)} each have a requirements.txt, but the tasks of one archive share one process; put "
            f"all lines into {asking[0]}/code/requirements.txt and leave the others out"
        )
    wishes = [part.settings for part in parts.values()]
    together = Berth(
        isolation="own" if any(wish.isolation == "own" for wish in wishes) else "shared",
        pin=any(wish.pin for wish in wishes),
        timeout_s=max(wish.timeout_s for wish in wishes),
    )
    return Manifest(
        kind="tasks",
        model_dir=str(folder),
        task="router",
        weights_bytes=sum(part.weights_bytes for part in parts.values()),
        requirements=parts[asking[0]].requirements if asking else "",
        settings=together if own is None else own,
        identity=identity,
        tasks=dict(parts),
    )


def spoken(name: str) -> str:
    """Return ``name`` as names are compared: the case, dashes and spaces do not matter."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def names(parts: Mapping[str, Manifest]) -> dict[str, str]:
    """Return what a request may call each of ``parts``, as ``spoken``: its folder, or its task if no other has it."""
    found: dict[str, str] = {}
    tasks = [part.task for part in parts.values()]
    for folder, part in parts.items():
        if part.task and tasks.count(part.task) == 1:
            found.update((spoken(name), folder) for name in names_of(part.task))
    found.update((spoken(folder), folder) for folder in parts)
    return found
