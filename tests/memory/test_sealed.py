import signal
import subprocess
import sys
from pathlib import Path

import torch

from container.memory import sealed

TENSORS = {
    "a": torch.randn(3, 5),
    "b": torch.arange(7),
    "c": torch.tensor(2.5, dtype=torch.bfloat16),
    "none": torch.zeros(0, 3),
    "mask": torch.tensor([True, False]),
}


def sealed_mappings() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:berth-weights" in line]


def test_sealed_copies_are_equal_aligned_and_in_one_read_only_mapping():
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    nbytes, copies = sealed.copy(TENSORS)
    assert nbytes == 4 * 256
    for name, tensor in TENSORS.items():
        assert torch.equal(copies[name], tensor)
        assert copies[name].dtype == tensor.dtype
        assert copies[name].numel() == 0 or copies[name].data_ptr() % 256 == 0
    assert [line.split()[1] for line in sealed_mappings()] == ["r--p"]
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


def test_the_memory_goes_with_the_last_tensor():
    _, copies = sealed.copy(TENSORS)
    last = copies["b"]
    del copies
    assert len(sealed_mappings()) == 1
    del last
    assert sealed_mappings() == []


def test_nothing_seals_into_nothing():
    assert sealed.copy({}) == (1, {})


def test_a_write_into_sealed_memory_ends_the_process():
    code = (
        "import resource, torch; from container.memory import sealed\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "_, copies = sealed.copy({'w': torch.ones(9)})\n"
        "print(float((copies['w'] * 2).sum()), flush=True)\n"
        "copies['w'].fill_(0); print('written', flush=True)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (run.stdout, run.returncode) == ("18.0\n", -signal.SIGSEGV)
