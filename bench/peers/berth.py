"""berth itself, as the image runs it: ``python -m container serve`` in multi-model mode."""

from __future__ import annotations

import sys
from typing import ClassVar

from bench.peers.server import Server


class Berth(Server):
    """One berth. settings: further ``BERTH_*`` variables."""

    name: ClassVar[str] = "berth"

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        super().__init__()
        self.settings = settings or {}

    def command(self) -> list[str]:
        """Return the verb of the image."""
        return [sys.executable, "-m", "container", "serve"]

    def environment(self) -> dict[str, str]:
        """Return what SageMaker would set, and a state folder of this run."""
        return {
            "SAGEMAKER_BIND_TO_PORT": str(self.port),
            "SAGEMAKER_BASE_DIR": str(self.folder / "base"),
            "SAGEMAKER_MULTI_MODEL": "true",
            "BERTH_STATE_DIR": str(self.scratch / "state"),
            "BERTH_MEMORY_LIMIT": "8GiB",
            "BERTH_LOG_LEVEL": "warning",
            **self.settings,
        }
