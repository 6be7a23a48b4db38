"""One model's code imports torch for the first time while another model answers: the other must not notice."""

from __future__ import annotations

import subprocess
import sys

#: Everything that looks torch up, called without pause while another thread imports it.
RACE = """
import sys, threading
from container.model import adopt, blame, guard

sys.setswitchinterval(1e-5)
guard.take_baseline()
done = threading.Event()

def bring_torch():
    import torch
    done.set()

thread = threading.Thread(target=bring_torch)
thread.start()
rounds = 0
while True:
    last = done.is_set()
    with guard.calling("other"), adopt.no_grad():
        assert not blame.out_of_memory(RuntimeError("x"))
        assert not blame.poisoned(RuntimeError("CUDA error: misaligned address"))
        assert adopt.measure([b"x"]) == 0
    rounds += 1
    if last:
        break
thread.join()
with adopt.no_grad():
    assert not sys.modules["torch"].is_grad_enabled()
print(rounds)
"""


def test_whoever_answers_while_torch_is_being_imported_works_as_without_it() -> None:
    ended = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 100
