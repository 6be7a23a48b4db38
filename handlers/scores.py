"""Logits to labels and scores, best first, as transformers' classification pipelines answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from torch import Tensor

Function = Literal["softmax", "sigmoid", "none"]


class Parameters(msgspec.Struct, frozen=True):
    """What a request may ask. top_k None = all classes; function_to_apply None = as the model's config says."""

    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = 5
    function_to_apply: Function | None = None


def usual(found: Mapping[str, Any], classes: int) -> Function:
    """Return what transformers' pipelines do with the logits of config.json's ``found`` when nobody says."""
    if found.get("problem_type") == "regression":
        return "none"
    return "sigmoid" if classes == 1 or found.get("problem_type") == "multi_label_classification" else "softmax"


def ranked(logits: Tensor, labels: Sequence[str], top_k: int | None, function: Function) -> list[list[dict[str, Any]]]:
    """Return [{"label", "score"}, ...] for each row of ``logits`` [n, classes] float32, best first."""
    scores = logits
    if function == "softmax":
        scores = logits.softmax(1)
    elif function == "sigmoid":
        scores = logits.sigmoid()
    best, numbers = scores.topk(min(top_k or len(labels), len(labels)), dim=1)
    return [
        [{"label": labels[number], "score": score} for score, number in zip(*row, strict=True)]
        for row in zip(best.tolist(), numbers.tolist(), strict=True)
    ]
