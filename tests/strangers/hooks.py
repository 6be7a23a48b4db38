"""Loaded by schemathesis (SCHEMATHESIS_HOOKS): our own look at every answer, beside its checks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import schemathesis

from tests.strangers.clean import assert_clean


@schemathesis.check
def tells_nothing(ctx: Any, response: Any, case: Any) -> None:
    """No traceback, path or secret in the answer."""
    said = f"{response.request.url} {response.request.headers} {response.request.body!r}"
    assert_clean(f"{response.headers} {response.text}", Path(os.environ["STATE_DIR"]), said)
