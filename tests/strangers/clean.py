"""What no answer of ours may hold, whoever asks: tracebacks, paths of this machine, values of the environment."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.server import ROOT

#: Planted in the server's environment, so that any leak of it shows.
SECRET = "hunter2-from-the-environment"
PLANTED = {"AWS_SECRET_ACCESS_KEY": SECRET, "HF_TOKEN": SECRET, "DATABASE_URL": f"postgres://me:{SECRET}@db/x"}

_TRACES = ("Traceback", 'File "', "site-packages", "dist-packages", ".py:", "line 1, in")
_PLACES = (str(ROOT), sys.prefix, str(Path.home()) + "/", "/usr/lib/", "/proc/")


def assert_clean(text: str, state_dir: Path, said: str = "") -> None:
    """Fail if ``text``, an answer to ``said``, tells more than it should; what the caller said may come back."""
    for mark in (*_TRACES, SECRET, *_PLACES, str(state_dir)):
        assert mark not in text or mark in said, f"{mark!r} is in an answer: {text[:2000]}"
    addresses = re.findall(r"0x[0-9a-f]{8,}", text)
    assert not [address for address in addresses if address not in said], text[:2000]
