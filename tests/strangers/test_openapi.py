"""Schemathesis against our own /openapi.json: what it describes is what is there, and nothing answers 500."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.server import ROOT, Server

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
#: Inputs tried for each operation; ``make chaos`` asks for more.
EXAMPLES = os.environ.get("STRANGERS_EXAMPLES", "8")


def test_generated_requests_get_only_the_answers_that_the_document_promises(server: Server, tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.http.base_url}/openapi.json"),
            *("--phases=fuzzing", f"--max-examples={EXAMPLES}", "--seed=1", "--mode=all", "--no-color"),
            *(f"--checks={CHECKS},tells_nothing", "--suppress-health-check=all", "--generation-database=none"),
            *("--exclude-path=/", "--exclude-path=/docs", "--request-timeout=20"),
        ],
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "tests.strangers.hooks",
            "STATE_DIR": str(server.base / "state"),
            "PYTHONPATH": str(ROOT),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
    counted = re.search(r"(\d+) generated", ended.stdout)
    assert counted is not None and int(counted[1]) > 30, ended.stdout
    print(counted[0])
    for name in {"bert", "fine"}.difference(server.names()):  # schemathesis learns names, and DELETE is described, too
        server.load(name).raise_for_status()
