"""What /ping says, by a clock of the test's."""

from __future__ import annotations

import asyncio
from pathlib import Path

from container.errors import ModelNotFound
from container.front import health
from container.front.health import Health
from container.settings import Settings
from container.wire import messages as m

from .inside import Stub


def health_of(stub: Stub, tmp_path: Path, multi: bool = True) -> Health:
    environ = {"BERTH_STATE_DIR": str(tmp_path / "s"), "SAGEMAKER_BASE_DIR": str(tmp_path)}
    environ["SAGEMAKER_MULTI_MODEL"] = str(multi)
    settings = Settings.read(environ)
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


def test_an_engine_that_was_never_there_is_starting(tmp_path: Path) -> None:
    stub = Stub()
    stub.connected = False
    assert health_of(stub, tmp_path).reason(now=1000) == "the engine is starting"


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
    assert health_of(Stub(), tmp_path, multi=False).single_ready
    (tmp_path / "model").mkdir()
    assert health_of(Stub(), tmp_path, multi=False).single_ready


def test_the_single_model_is_waited_for_until_it_is_ready_once(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    states = iter(["absent", "loading", "ready"])

    def describe(request: m.Request) -> m.Reply:
        assert request == m.Describe(0, "model")
        state = next(states)
        if state == "absent":
            raise ModelNotFound("not yet")
        return m.Description(0, "model", "", state, "disk", 0)

    checked = health_of(Stub(call=describe), tmp_path, multi=False)
    assert checked.reason(now=0) == "the model behind /invocations is being loaded"
    assert checked.answer().status == 503
    health._POLL_S, before = 0.0, health._POLL_S
    try:
        asyncio.run(checked.wait_for_single_model())
    finally:
        health._POLL_S = before
    assert checked.answer() == (
        200,
        [(b"content-type", b"application/json"), (b"content-length", b"20")],
        b'{"status":"Healthy"}',
    )
