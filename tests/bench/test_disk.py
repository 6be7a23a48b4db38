import os

from bench.disk import forget_cached, raw_read
from bench.processes import disk_bytes


def test_a_raw_read_reads_the_whole_file_from_the_disk(tmp_path):
    file = tmp_path / "large"
    file.write_bytes(bytes(17 << 20))
    forget_cached(file)
    before = disk_bytes([os.getpid()])

    assert raw_read([file], 2) > 0
    assert disk_bytes([os.getpid()]) - before in (0, 17 << 20)  # 0 on tmpfs, which no disk is behind
