"""A mapped file that is cut while it is read; in processes of their own, because signals belong to the process."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from container.memory import mapped

BEGIN = """
    import asyncio, os, signal, sys, threading
    from pathlib import Path
    import torch, uvloop
    from safetensors.torch import save_file
    from container.memory import mapped
    from container.memory.mapped import WeightsChanged
    from container.memory.weights import open_weights

    torch.set_num_threads(2)
    folder = Path(sys.argv[1])
    file = folder / "model.safetensors"
    save_file({"w": torch.ones(1000, 1000)}, file)

    async def main():
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        mapped.guard()
        weights = open_weights(folder)
        print("before", weights["w"].sum().item())
"""
END = """
    uvloop.run(main())
"""


def run(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(BEGIN) + textwrap.indent(textwrap.dedent(body), "    ") + textwrap.dedent(END)
    return subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=60, check=False)


def test_a_read_behind_the_end_of_a_cut_file_ends_and_the_check_tells(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        os.truncate(file, 100_000)
        print("on a thread", await asyncio.to_thread(lambda: weights["w"].sum().item()))
        print("on the loop", weights["w"].sum().item())
        try:
            weights.check()
        except WeightsChanged:
            print("changed")
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(ended.wait(), 5)
        print("signals still reach the loop")
        """,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "before 1000000.0"
    assert lines[1].startswith("on a thread")
    assert lines[2].startswith("on the loop")
    assert lines[3:] == ["changed", "signals still reach the loop"]


@pytest.mark.parametrize("length", [0, 100_000, 2_000_123], ids=["nothing", "some", "half and a part of a page"])
@pytest.mark.parametrize("resident", [True, False], ids=["read before", "not in memory"])
def test_a_file_that_is_cut_between_the_check_and_the_batch_costs_the_batch_only(
    tmp_path: Path, resident: bool, length: int
) -> None:
    done = run(
        tmp_path,
        f"""
        if not {resident}:
            for mapping in mapped._all:
                mapping.forget_pages()
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        weights.check()
        os.truncate(file, {length})
        print("batch", await asyncio.to_thread(lambda: (weights["w"] @ torch.ones(1000, 8)).sum().item()) < 8e6)
        print("ahead", [mapping.read_ahead() for mapping in mapped._all])
        try:
            weights.check()
        except WeightsChanged:
            print("changed")
        weights.close()
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["before 1000000.0", "batch True", "ahead [None]", "changed"]


def test_the_loop_itself_may_be_the_one_that_reads(tmp_path: Path) -> None:
    done = run(tmp_path, 'os.truncate(file, 0)\nprint("on the loop", weights["w"].sum().item())')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["before 1000000.0", "on the loop 0.0"]


@pytest.mark.parametrize("let_go", ["weights.close()", 'weights.rebind({"w": torch.ones(1000, 1000)}, [])'])
def test_who_reads_on_from_a_map_that_was_closed_or_moved_off_its_file_finds_zeros(tmp_path: Path, let_go: str) -> None:
    """A comparison, or a batch that looked its tensors up before."""
    done = run(
        tmp_path,
        f"""
        tensor = weights["w"]
        {let_go}
        os.truncate(file, 0)
        print("reads on", await asyncio.to_thread(lambda: tensor.sum().item()))
        del tensor
        print("mapped", str(file) in Path("/proc/self/maps").read_text())
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["before 1000000.0", "reads on 0.0", "mapped False"]


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_files_that_are_only_looked_at_on_the_way_to_a_device_are_covered_too(tmp_path: Path, kind: str) -> None:
    done = run(
        tmp_path,
        f"""
        from container.memory.reading import Source
        weights.close()
        name = "model.safetensors" if {kind == "safetensors"} else "pytorch_model.bin"
        if not (folder / name).exists():
            file.unlink()
            torch.save({{"w": torch.ones(1000, 1000)}}, folder / name)
        source = Source(folder, "", "cpu", allow_pickle=True)
        source.fingerprints("")
        os.truncate(folder / name, 0)
        print("compares", await asyncio.to_thread(lambda: source.tensor("w").sum().item()))
        source.forget()
        print("mapped", str(folder / name) in Path("/proc/self/maps").read_text())
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["before 1000000.0", "compares 0.0", "mapped False"]


def test_what_was_unmapped_is_never_covered_though_its_map_is_open(tmp_path: Path) -> None:
    """Its addresses may be somebody else's by then."""
    done = run(
        tmp_path,
        """
        mapping, = mapped._all
        tensors = weights._tensors
        weights._tensors = {}
        tensors.clear()
        print("mapped", str(file) in Path("/proc/self/maps").read_text())
        os.truncate(file, 0)
        print("covered", mapping.cover(), mapping.read_ahead(), mapping.forget_pages())
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["before 1000000.0", "mapped False", "covered False None None"]


def test_a_bus_error_of_another_cause_still_ends_the_process(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        other = folder / "other"
        other.write_bytes(b"1" * 100_000)
        storage = torch.UntypedStorage.from_file(str(other), False, 100_000)
        os.truncate(other, 0)
        await asyncio.to_thread(lambda: torch.tensor([], dtype=torch.uint8).set_(storage).sum())
        """,
    )
    assert done.returncode == -signal.SIGABRT


def test_files_that_were_compared_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "REMEMBERED", 3)
    verified = mapped.Verified()
    for number in (1, 2, 3, 1, 4, 5):
        verified.add((number,))
    assert [number for number in range(6) if (number,) in verified] == [3, 4, 5]
    assert len(verified) == 3
