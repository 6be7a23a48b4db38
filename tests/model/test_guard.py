import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from archives_at_hand import bodies

from container.model import guard
from container.payload import Payload


def state():
    return {
        "dtype": torch.get_default_dtype(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "path": list(sys.path),
        "environ": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "cwd": Path.cwd(),
    }


@pytest.fixture(autouse=True)
def _torch_as_before(baseline):
    before = state()
    yield
    torch.set_default_dtype(before["dtype"])
    torch.set_float32_matmul_precision(before["precision"])
    torch.use_deterministic_algorithms(before["deterministic"])
    torch.backends.cudnn.benchmark = before["benchmark"]
    torch.set_num_threads(before["threads"])
    torch.set_grad_enabled(before["grad"])


def test_what_code_changes_at_load_and_in_calls_is_put_back(opened, caplog):
    before = state()
    model = opened("changes_everything")
    assert state() == before
    assert bodies(model.handler, Payload(b"1"), Payload(b"2")) == [b"true", b"true"]
    assert state() == before
    assert os.getenv("HOME") == before["environ"]["HOME"]
    told = [record.message for record in caplog.records]
    assert "the code of model model changed the default dtype of the process; it was put back" in told
    assert len(told) == len(set(told)) == 9  # each thing once, not once a call


def test_the_environment_of_the_c_library_is_put_back_too():
    with guard.calling("m"):
        os.environ["BERTH_TEST_ONLY"] = "1"
    assert subprocess.check_output("echo -n $BERTH_TEST_ONLY", shell=True) == b""


def test_a_short_call_does_not_pull_state_from_under_a_load():
    with guard.loading("slow"):
        torch.set_default_dtype(torch.float64)
        with guard.calling("quick"):
            pass
        assert torch.get_default_dtype() == torch.float64
    assert torch.get_default_dtype() == torch.float32


def test_the_last_of_several_loads_puts_back():
    first = guard.loading("first")
    with guard.loading("second"):
        first.__enter__()
        os.chdir("/")
    assert Path.cwd() == Path("/")
    first.__exit__(None, None, None)
    assert Path.cwd() != Path("/")


def test_calls_that_overlap_restore_the_baseline_not_each_others_state():
    before = torch.get_default_dtype()
    inside, leave = threading.Event(), threading.Event()

    def spoils():
        with guard.calling("a"):
            torch.set_default_dtype(torch.float64)
            inside.set()
            leave.wait(5)

    thread = threading.Thread(target=spoils)
    thread.start()
    inside.wait(5)
    with guard.calling("b"):  # begins while "a" has it changed
        leave.set()
        thread.join()
    assert torch.get_default_dtype() == before


def test_without_a_baseline_nothing_is_touched():
    guard.drop_baseline()
    with guard.loading("m"), guard.calling("m"):
        torch.set_default_dtype(torch.float64)
    assert torch.get_default_dtype() == torch.float64


def test_a_working_directory_that_was_deleted_is_left(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    with guard.calling("m"):
        os.chdir(gone)
        gone.rmdir()
    assert Path.cwd() != gone
