"""What /ping says, by a clock of the test's."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from container.errors import Restarting
from container.front import health
from container.front.health import Health
from container.settings import Settings
from container.wire import messages as m

from .inside import Stub


def health_of(stub: Stub, tmp_path: Path, **environ: str) -> Health:
    folders = {"BERTH_STATE_DIR": str(tmp_path / "s"), "SAGEMAKER_BASE_DIR": str(tmp_path)}
    settings = Settings.read({"SAGEMAKER_MULTI_MODEL": "true", **folders, **environ})
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    return Health(stub, settings)


def test_an_engine_may_be_gone_for_half_a_minute(tmp_path: Path) -> None:
    stub = Stub()
    checked = health_of(stub, tmp_path)
    assert checked.reason(now=1000) == ""
    stub.connected, stub.lost_at = False, 1000
    assert checked.reason(now=1029.9) == ""
    assert checked.reason(now=1031) == "the engine has been gone for 31 s"
    stub.connected, stub.lost_at = True, None
    assert checked.reason(now=1032) == ""


def test_a_worker_that_has_not_met_the_engine_yet_gives_it_half_a_minute_from_its_own_start(tmp_path: Path) -> None:
    stub = Stub()
    stub.connected = False
    before = time.monotonic()
    checked = health_of(stub, tmp_path)
    assert checked.reason(now=before + 29.9) == ""
    assert checked.reason(now=time.monotonic() + 31) == "the engine has been gone for 31 s"


def test_the_supervisor_s_note_wins_and_an_empty_one_counts(tmp_path: Path) -> None:
    checked = health_of(Stub(), tmp_path)
    note = Settings.read({"BERTH_STATE_DIR": str(tmp_path / "s")}).run_dir / "unhealthy"
    note.write_text("")
    assert checked.reason(now=0) == "unhealthy"
    note.write_bytes(b"bad \xff bytes\n" + b"x" * 5000)
    assert len(checked.reason(now=0)) == 1000
    note.unlink()
    assert checked.reason(now=0) == ""


def test_without_a_model_folder_or_with_an_empty_one_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    assert health_of(Stub(), tmp_path, SAGEMAKER_MULTI_MODEL="false").started
    (tmp_path / "model").mkdir()
    assert health_of(Stub(), tmp_path, SAGEMAKER_MULTI_MODEL="false").started


def check_waits(tmp_path: Path, **environ: str) -> None:
    """Unhealthy until the engine says anything but "loading"; an engine that dies meanwhile changes nothing."""
    states = iter(["dead", "loading", "ready"])

    def ready(request: m.Request) -> m.Reply:
        assert request == m.Ready(0)
        state = next(states)
        if state == "dead":
            raise Restarting("not yet", retry_after_s=1.0)
        return m.Status(0, state)

    checked = health_of(Stub(call=ready), tmp_path, **environ)
    assert checked.reason(now=0) == "the models that the server was started with are being loaded"
    assert checked.reason(now=0, loading_counts=False) == ""
    assert checked.answer().status == 503
    health._POLL_S, before = 0.0, health._POLL_S
    try:
        asyncio.run(checked.wait_for_first_models())
    finally:
        health._POLL_S = before
    assert list(states) == []
    assert checked.answer() == (
        200,
        [(b"content-type", b"application/json"), (b"content-length", b"20")],
        b'{"status":"Healthy"}',
    )


def test_the_single_model_is_waited_for_once(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    check_waits(tmp_path, SAGEMAKER_MULTI_MODEL="false")


def test_a_folder_of_models_is_waited_for_once(tmp_path: Path) -> None:
    check_waits(tmp_path, BERTH_MODELS=str(tmp_path))
