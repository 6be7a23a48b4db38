"""A CUDA context that is broken for good, told from errors that merely say so."""

from __future__ import annotations

import pytest
import torch

from container.model import blame

STICKY = RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...")


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)


@pytest.mark.usefixtures("context")
@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (STICKY, True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (ValueError(str(STICKY)), False),
        (RuntimeError("an illegal memory access was encountered"), False),
        (KeyError("x"), False),
    ],
)
def test_only_what_torch_itself_says_of_the_context_counts(error: Exception, broken: bool) -> None:
    assert blame.poisoned(error) is broken


def test_without_a_context_nothing_is_poisoned() -> None:
    assert torch.cuda.is_initialized() or not blame.poisoned(STICKY)
