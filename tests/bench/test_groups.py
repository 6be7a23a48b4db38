import subprocess
import sys

import pytest

from bench.disk import forget_cached
from bench.groups import group
from bench.processes import disk_bytes

_MIB = 1 << 20
_READER = """
import sys
with open(sys.argv[1], "rb", buffering=0) as file:
    while file.read(1 << 20):
        pass
print("read", flush=True)
sys.stdin.read()
"""


def test_a_process_in_a_group_has_no_more_page_cache_than_its_limit_and_the_group_goes_with_it(tmp_path):
    file = tmp_path / "large"
    with file.open("wb") as stream:
        for _ in range(96):
            stream.write(bytes(_MIB))
    forget_cached(file)
    with group("berth-test") as made:
        if made is None:
            pytest.skip("no control group can be made here")
        made.limit(64 * _MIB)
        command = made.entering([sys.executable, "-c", _READER, str(file)])
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "read\n"
            assert str(reader.pid) in (made.folder / "cgroup.procs").read_text().split()
            assert disk_bytes([reader.pid]) >= 96 * _MIB
            assert 32 * _MIB < made.cached_bytes() <= 64 * _MIB - made.held_bytes()
            assert made.held_bytes() > _MIB
    assert not made.folder.exists()
