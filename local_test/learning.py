"""What the demo's two trainings share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class NotLearnt(Exception):
    """A trained model that does not know what it should; the message says what."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Train on one thread: the models are small, two threads gain little and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
