import os
import subprocess
import sys
import time

from bench import processes

_PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={}, start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_tree_holds_descendants_that_lost_the_marker_and_the_session_and_ends_whole():
    marker = f"test-{os.getpid()}"
    command = [sys.executable, "-c", _PARENT]
    environment = {**os.environ, processes.MARKER: marker}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert processes.tree(marker) == sorted([parent.pid, child])
        assert processes.pss_bytes(processes.tree(marker)) > 1 << 20

        for pid in processes.tree(marker):
            os.kill(pid, 9)
        parent.wait()
        deadline = time.monotonic() + 60
        while processes.tree(marker) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert processes.tree(marker) == []


def test_cpu_time_grows_with_work_and_the_gone_count_nothing():
    began = processes.cpu_seconds([os.getpid()])
    while processes.cpu_seconds([os.getpid()]) < began + 0.05:
        sum(range(10_000))
    assert processes.cpu_seconds([2**22 + 1]) == 0.0


def test_ending_a_server_that_ignores_sigterm_still_ends_it():
    marker = f"stubborn-{os.getpid()}"
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    environment = {**os.environ, processes.MARKER: marker}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as stubborn:
        assert stubborn.stdout is not None and stubborn.stdout.readline()
        processes.end(stubborn.pid, marker, patience_s=0.2)
        assert stubborn.wait(5) == -9
    assert processes.tree(marker) == []
