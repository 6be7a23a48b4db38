"""Bytes of many tensors, fetched together: the same that each tensor alone would give."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from container.memory.samples import samples

WIDTH = 16


def one_by_one(tensor: torch.Tensor) -> bytes:
    whole = bytes(tensor.numpy().tobytes())
    last = max(0, len(whole) - WIDTH)
    return b"".join(whole[start : start + WIDTH] for start in sorted({0, last // 2, last}))


@given(st.data(), st.integers(0, 200))
def test_samples_are_those_of_each_tensor_by_itself_wherever_it_lies(data: st.DataObject, room: int) -> None:
    """On a storage with others, over its last bytes, shorter than a sample, empty, or on a storage of its own."""
    shared = torch.arange(room, dtype=torch.uint8)
    cuts = data.draw(st.lists(st.tuples(st.integers(0, room), st.integers(0, room)), max_size=6))
    tensors = [shared[min(cut) : max(cut)] for cut in cuts]
    alone = data.draw(st.lists(st.integers(0, 3 * WIDTH), max_size=3))
    tensors += [torch.full((size,), float(size)) for size in alone]
    assert list(samples(tensors, WIDTH)) == [one_by_one(tensor) for tensor in tensors]


def test_storages_that_begin_at_the_same_byte_are_told_apart() -> None:
    """The shorter one first: of it the longer one's end cannot be fetched."""
    long = torch.arange(10 * WIDTH, dtype=torch.uint8)
    short = torch.frombuffer(long.numpy().data, dtype=torch.uint8, count=2 * WIDTH)
    alike = [short, torch.frombuffer(long.numpy().data, dtype=torch.uint8)]
    assert [tensor.data_ptr() for tensor in alike] == [long.data_ptr()] * 2
    assert list(samples(alike, WIDTH)) == [one_by_one(tensor) for tensor in alike]


def test_scalars_and_numbers_of_any_size_are_sampled_as_bytes() -> None:
    tensors = [torch.tensor(7), torch.ones((3, 5), dtype=torch.bfloat16), torch.zeros((0, 4)), torch.tensor([True])]
    assert [len(sample) for sample in samples(tensors, WIDTH)] == [8, 3 * WIDTH, 0, 1]
