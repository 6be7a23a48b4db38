"""Processes that come up, that do not, and that are gone afterwards."""

import os
import subprocess
import sys

import pytest

from local_test.processes import NotStarted, Process, free_port


@pytest.fixture
def start(tmp_path):
    started = []

    def run(*arguments):
        started.append(Process("the thing", arguments, os.environ, tmp_path / "log"))
        return started[-1]

    yield run
    for each in started:
        each.stop(1)


def test_a_process_is_ready_when_it_answers_and_gone_when_it_is_stopped(start, tmp_path):
    port = free_port()
    server = start("http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path))
    assert server.wait_ready(f"http://127.0.0.1:{port}/", 30) < 30
    server.stop(10)
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_a_process_that_ends_early_says_so_with_the_end_of_its_log(start):
    with pytest.raises(NotStarted, match=r"the thing ended with 1:\n.*No module named no_such_module"):
        start("no_such_module").wait_ready("http://127.0.0.1:1/", 30)
    with pytest.raises(NotStarted, match="No module named no_such_module"):
        start("no_such_module").first_line()


def test_what_ignores_sigterm_and_its_children_are_killed(tmp_path, monkeypatch):
    (tmp_path / "stubborn.py").write_text(
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = Process("stubborn", ["stubborn"], environment, tmp_path / "log")
    child = int(process.first_line())
    process.stop(0.2)
    states = [
        subprocess.run(["ps", "-o", "stat=", str(pid)], capture_output=True, text=True) for pid in (process.pid, child)
    ]
    assert [state.stdout.strip()[:1] in ("", "Z") for state in states] == [True, True]


def test_the_interpreter_is_the_one_that_runs_the_demo(start):
    assert start("sysconfig").first_line().startswith("Platform:")
    assert sys.executable
