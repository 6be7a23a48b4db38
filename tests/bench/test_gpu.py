"""The GPU bench proves itself where there is no GPU, and says that its figures are not there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import gpu
from bench.gpu_stage import Stage, stage_in

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a rehearsal is for machines without a GPU")
def test_without_a_gpu_answers_are_checked_and_no_figure_is_shown(tmp_path: Path) -> None:
    report = gpu.run(stage_in(tmp_path))
    correct, *others = report.tables
    assert correct.rows == [
        ("50 random sinks and rises", "all answers equal"),
        ("the same of authors' modules", "all answers and buffers equal"),
    ]
    assert len(others) == 5
    for table in others:
        assert all(row[-1] == gpu.NOT_RUN for row in table.rows), table
    assert report.goals == []


def test_a_wrong_answer_stops_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(stage: Stage, name: str) -> dict[str, torch.Tensor]:
        return {key: tensor * 1.01 for key, tensor in right(stage, name).items()}

    right = gpu.by_hand
    monkeypatch.setattr(gpu, "by_hand", wrong)
    assert gpu.main(["--dry", "--folder", str(tmp_path)]) == 1
    assert "WRONG, so nothing was measured" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


#: Runs the rehearsal where every package but those of a PyTorch image, and those named, is refused.
ALONE = """
import importlib.metadata, re, runpy, sys

def all_of(name):
    try:
        needs = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        needs = []
    found = {name}
    for need in needs:
        if "extra ==" not in need:
            found |= all_of(re.match(r"[A-Za-z0-9._-]+", need)[0])
    return found

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

_, *named = sys.argv
image = {plain(name) for name in all_of("torch") | {"numpy"}}
of = importlib.metadata.packages_distributions()
asked = set()

class Refuse:
    def find_spec(self, module, path=None, target=None):
        whose = {plain(name) for name in of.get(module.partition(".")[0], ())} - {"berth"}
        asked.update(whose & set(named))
        if whose and not whose & (image | set(named)):
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)

sys.meta_path.insert(0, Refuse())
sys.argv = ["bench.gpu", "--dry"]
try:
    runpy.run_module("bench.gpu", run_name="__main__", alter_sys=True)
except SystemExit as ended:
    assert not ended.code, ended
assert asked == set(named), f"never imported: {set(named) - asked}"
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a rehearsal is for machines without a GPU")
def test_it_runs_beside_a_pytorch_image_with_exactly_the_wheels_that_page_and_help_name() -> None:
    fetched = re.findall(r"pip download --no-deps -d wheels (.+)", (ROOT / "bench" / "README.md").read_text())
    assert [fetched[0]] == re.findall(r"pip download --no-deps -d wheels (.+)", gpu.__doc__ or "")
    command = [sys.executable, "-c", ALONE, *fetched[0].split()]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
