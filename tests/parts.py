"""All parts of one engine without its process: real lanes, real files, a real child for guests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from container.engine.main import Parts
from container.model import watch
from container.settings import Settings
from container.wire.server import make_run_folder
from tests.server import write_script


def run_with_guests(
    tmp_path: Path, scenario: Callable[[Parts], Awaitable[None]], within_s: float, **environ: str
) -> None:
    """Run ``scenario`` on a CPU unless told otherwise, then end the children."""
    base = {"SAGEMAKER_BASE_DIR": str(tmp_path / "base"), "BERTH_STATE_DIR": str(tmp_path / "state")}
    settings = Settings.read({**base, "SAGEMAKER_MULTI_MODEL": "true", "BERTH_DEVICE": "cpu", **environ})
    make_run_folder(settings.run_dir)
    watch.Page(settings.run_dir / "page", create=True)

    async def main() -> None:
        parts = Parts(settings, lambda message: None)
        parts.guests.start()
        try:
            await asyncio.wait_for(scenario(parts), within_s)
        finally:
            await asyncio.gather(parts.guests.stop(), parts.own.stop())

    asyncio.run(main())


def write_archive(tmp_path: Path, name: str, code: str, berth: dict[str, Any]) -> Path:
    """Write an archive of an author's script where ``run_with_guests`` may load it; return its folder."""
    folder = write_script(tmp_path / "base" / "models" / name / "model", code)
    if berth:
        (folder / "berth.json").write_text(json.dumps(berth))
    return folder
