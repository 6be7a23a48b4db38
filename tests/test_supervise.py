"""What the supervisor does in moments that no outside view can bring about at will."""

from __future__ import annotations

from pathlib import Path

from container.settings import Settings
from container.supervise import Supervisor


def test_an_engine_that_hung_up_and_was_buried_in_the_same_moment_is_not_listened_to(tmp_path: Path) -> None:
    """Its death may be told first: then the event of its socket, reported with that, is nobody's any more."""
    supervisor = Supervisor(Settings.read({"BERTH_STATE_DIR": str(tmp_path)}))
    supervisor._on_control()
    assert supervisor._control is None
