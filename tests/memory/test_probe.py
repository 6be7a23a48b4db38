from pathlib import Path, PurePosixPath

import pytest

from container.memory import probe

MEMINFO = (
    "MemTotal:       24684092 kB\nMemFree:         1000000 kB\nMemAvailable:    4194304 kB\nHugePages_Total:       0\n"
)
V2_MOUNT = "30 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
MIB = 1 << 20


def machine(root: Path, cgroup: str, mountinfo: str, files: dict[str, str]) -> Path:
    for name, text in {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": cgroup,
        "proc/self/mountinfo": "22 27 0:21 / /proc rw - proc proc rw\n" + mountinfo,
        **files,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def stat(**figures: int) -> str:
    return "".join(f"{name} {value}\n" for name, value in figures.items())


def test_without_limits_the_machine_itself_counts(tmp_path):
    assert probe.free_ram_bytes(machine(tmp_path, "0::/\n", V2_MOUNT, {})) == 4096 * MIB


def test_v2_counts_what_cannot_be_dropped_and_not_the_page_cache(tmp_path):
    files = {
        "sys/fs/cgroup/memory.max": f"{1000 * MIB}\n",
        "sys/fs/cgroup/memory.stat": stat(
            anon=100 * MIB, file=800 * MIB, kernel=20 * MIB, shmem=30 * MIB, slab=9 * MIB
        ),
    }
    assert probe.free_ram_bytes(machine(tmp_path, "0::/\n", V2_MOUNT, files)) == 850 * MIB


def test_v2_before_linux_5_18_adds_the_parts_of_the_kernel(tmp_path):
    figures = {"anon": 100, "kernel_stack": 1, "slab_unreclaimable": 2, "pagetables": 4, "percpu": 8, "sock": 16}
    files = {
        "sys/fs/cgroup/memory.max": f"{1000 * MIB}\n",
        "sys/fs/cgroup/memory.stat": stat(**{name: value * MIB for name, value in figures.items()}),
    }
    assert probe.free_ram_bytes(machine(tmp_path, "0::/\n", V2_MOUNT, files)) == (1000 - 131) * MIB


def test_nested_groups_count_with_the_tightest_parent(tmp_path):
    files = {
        "sys/fs/cgroup/kubepods/memory.max": f"{700 * MIB}\n",
        "sys/fs/cgroup/kubepods/memory.stat": stat(anon=650 * MIB, kernel=0),
        "sys/fs/cgroup/kubepods/pod1/memory.max": "max\n",
        "sys/fs/cgroup/kubepods/pod1/memory.stat": stat(anon=300 * MIB, kernel=0),
        "sys/fs/cgroup/kubepods/pod1/c/memory.max": f"{500 * MIB}\n",
        "sys/fs/cgroup/kubepods/pod1/c/memory.stat": stat(anon=200 * MIB, kernel=0),
    }
    assert probe.free_ram_bytes(machine(tmp_path, "0::/kubepods/pod1/c\n", V2_MOUNT, files)) == 50 * MIB


V1_GROUPS = "9:name=systemd:/\n5:devices:/\n4:cpu,memory:/docker/abc\n0::/\n"


def test_v1_subtracts_anonymous_shared_and_kernel_bytes(tmp_path):
    files = {
        "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": f"{600 * MIB}\n",
        "sys/fs/cgroup/memory/docker/abc/memory.stat": stat(
            cache=999, rss=1, total_cache=400 * MIB, total_rss=100 * MIB, total_shmem=20 * MIB
        ),
        "sys/fs/cgroup/memory/docker/abc/memory.kmem.usage_in_bytes": f"{5 * MIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert probe.free_ram_bytes(machine(tmp_path, V1_GROUPS, V1_MOUNT, files)) == 475 * MIB


def test_a_container_that_sees_only_its_own_group_finds_it_at_the_mount(tmp_path):
    """Docker without a cgroup namespace: the path is the host's, the mount's root is that path."""
    mount = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{600 * MIB}\n",
        "sys/fs/cgroup/memory/memory.stat": stat(total_rss=100 * MIB),
    }
    assert probe.free_ram_bytes(machine(tmp_path, V1_GROUPS, mount, files)) == 500 * MIB


def test_the_tighter_of_both_versions_counts_on_a_hybrid_machine(tmp_path):
    mounts = V1_MOUNT + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    files = {
        "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": f"{600 * MIB}\n",
        "sys/fs/cgroup/unified/memory.max": f"{300 * MIB}\n",
    }
    assert probe.free_ram_bytes(machine(tmp_path, V1_GROUPS, mounts, files)) == 300 * MIB


def test_a_group_over_its_limit_leaves_nothing_rather_than_less(tmp_path):
    files = {"sys/fs/cgroup/memory.max": "100\n", "sys/fs/cgroup/memory.stat": stat(anon=200, kernel=1)}
    assert probe.free_ram_bytes(machine(tmp_path, "0::/\n", V2_MOUNT, files)) == 0


@pytest.mark.parametrize("path, root", [("/../../other", "/docker/abc"), ("/../other", "/"), ("/elsewhere", "/docker")])
def test_a_path_outside_the_mount_reads_the_mount_itself(path, root):
    """A cgroup namespace shows groups outside it as /../..; nothing of them is visible."""
    mount = f"30 23 0:27 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    assert list(probe.cgroups(f"0::{path}\n", mount)) == [(2, PurePosixPath("/sys/fs/cgroup"))]


def test_old_kernels_without_mem_available_count_what_is_free():
    assert probe.meminfo("MemTotal: 8 kB\nMemFree:  2 kB\n")["MemAvailable"] == 2048


def test_the_default_limit_of_this_machine_is_most_of_what_it_has():
    total = probe.meminfo(Path("/proc/meminfo").read_text())["MemTotal"]
    assert 0 < probe.default_limit("cpu") <= 0.8 * total
