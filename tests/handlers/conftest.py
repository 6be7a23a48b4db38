"""Two threads at most, so that a test run leaves the machine to others."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def few_threads() -> None:
    torch.set_num_threads(1)
