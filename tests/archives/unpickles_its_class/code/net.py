from __future__ import annotations

import typing
from dataclasses import dataclass

import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)


@dataclass(frozen=True)
class Point:
    x: int
    y: int
    net: typing.Optional[Net] = None  # noqa: UP045


def hints():
    return typing.get_type_hints(Point)["net"] == typing.Optional[Net]  # noqa: UP045
