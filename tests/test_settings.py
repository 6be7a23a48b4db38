from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.settings import BadSetting, Settings, size_bytes


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("120MiB", 120 << 20), ("2GiB", 2 << 30), ("1.5GB", 1_500_000_000), ("7", 7), ("3 KB", 3000), ("1TiB", 1 << 40)],
)
def test_sizes_are_read_as_people_write_them(text: str, wanted: int) -> None:
    assert size_bytes(text) == wanted


@given(st.text(max_size=12))
def test_no_text_crashes_the_reader_of_sizes(text: str) -> None:
    try:
        assert size_bytes(text) >= 0
    except ValueError as error:
        assert "MiB" in str(error)


def test_defaults_need_no_environment(tmp_path: Path) -> None:
    settings = Settings.read({"BERTH_STATE_DIR": str(tmp_path)})
    assert (settings.port, settings.host, settings.max_payload_bytes) == (8080, "127.0.0.1", 25 << 20)
    assert (settings.front_workers, settings.queue_length, settings.eviction) == (1, 100, "sink")
    assert settings.models_roots == (Path("/opt/ml/models"), Path("/opt/ml/model"), tmp_path / "unpacked")


def test_an_unknown_name_of_ours_names_the_nearest_and_the_platforms_are_left_alone() -> None:
    with pytest.raises(BadSetting, match="did you mean BERTH_MEMORY_LIMIT"):
        Settings.read({"BERTH_MEMORY_LIMT": "1GiB"})
    with pytest.raises(BadSetting, match="did you mean SAGEMAKER_BIND_TO_PORT"):
        Settings.read({"BERTH_PORT": "9000"})
    Settings.read({"SAGEMAKER_SOMETHING_NEW": "x", "SAGEMAKER_REGION": "eu-west-1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BERTH_MEMORY_LIMIT", "a lot"),
        ("BERTH_DEVICE", "gpu"),
        ("BERTH_DEVICE", "sim:4@fast/s"),
        ("BERTH_SHARING", "yes"),
        ("SAGEMAKER_BIND_TO_PORT", "99999"),
        ("SAGEMAKER_BIND_TO_PORT", "-1"),
        ("BERTH_QUEUE_LENGTH", "0"),
        ("BERTH_EVICTION", "never"),
    ],
)
def test_a_malformed_value_names_the_variable_and_the_value(name: str, value: str) -> None:
    with pytest.raises(BadSetting) as caught:
        Settings.read({name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


def test_the_server_refuses_to_start_on_a_bad_setting_with_exit_status_2() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "container", "serve"],
        env={"BERTH_MEMRY_LIMIT": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "BERTH_MEMORY_LIMIT" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_state_folder_too_deep_for_a_socket_gives_way(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    assert len(str(Settings.read({"BERTH_STATE_DIR": str(deep)}).run_dir / "engine.sock")) < 108


def test_the_log_level_is_read_as_people_write_it() -> None:
    assert Settings.read({"BERTH_LOG_LEVEL": "WARNING"}).log_level == "warning"
