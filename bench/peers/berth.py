"""berth itself, as the image runs it: ``python -m container serve`` in multi-model mode."""

from __future__ import annotations

import json
import sys
from typing import Any, ClassVar

from bench.groups import Group
from bench.peers.server import Server


class Berth(Server):
    """One berth. settings: further ``BERTH_*`` variables. within: the control group to run in."""

    name: ClassVar[str] = "berth"

    def __init__(self, settings: dict[str, str] | None = None, within: Group | None = None) -> None:
        super().__init__()
        self.within = within
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

    def describe(self, model: str) -> dict[str, Any]:
        """Return what GET /models/{model} says. Raises PeerFailed."""
        described: dict[str, Any] = json.loads(self._must("GET", f"/models/{model}"))
        return described

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of one line of /metrics, 0.0 if there is none yet. Raises PeerFailed."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        for line in self._must("GET", "/metrics").decode().splitlines():
            series, _, value = line.rpartition(" ")
            found, _, inside = series.partition("{")
            if found == name and wanted <= set(inside.rstrip("}").split(",")):
                return float(value)
        return 0.0
