"""The GPU bench proves itself where there is no GPU, and says that its figures are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import gpu
from bench.gpu_stage import Stage, stage_in


@pytest.mark.skipif(torch.cuda.is_available(), reason="a rehearsal is for machines without a GPU")
def test_without_a_gpu_answers_are_checked_and_no_figure_is_shown(tmp_path: Path) -> None:
    report = gpu.run(stage_in(tmp_path))
    correct, *others = report.tables
    assert correct.rows == [("50 random sinks and rises", "all answers equal")]
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
