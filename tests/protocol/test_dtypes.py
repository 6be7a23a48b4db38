from __future__ import annotations

import numpy as np
import pytest
import torch

from container.errors import BadAnswer, BadInput
from container.protocol import dtypes


@pytest.mark.parametrize(
    ("name", "dtype", "size"),
    [
        ("BOOL", np.bool_, 1),
        ("UINT8", np.uint8, 1),
        ("UINT16", np.uint16, 2),
        ("UINT32", np.uint32, 4),
        ("UINT64", np.uint64, 8),
        ("INT8", np.int8, 1),
        ("INT16", np.int16, 2),
        ("INT32", np.int32, 4),
        ("INT64", np.int64, 8),
        ("FP16", np.float16, 2),
        ("FP32", np.float32, 4),
        ("FP64", np.float64, 8),
        ("BYTES", np.object_, None),
    ],
)
def test_each_name_has_its_numpy_type_and_back(name: str, dtype: type[np.generic], size: int | None) -> None:
    assert dtypes.to_numpy(name) == np.dtype(dtype)
    assert dtypes.to_name(np.dtype(dtype)) == name
    assert dtypes.item_bytes(name) == size


def test_bfloat16_travels_as_its_bits() -> None:
    assert dtypes.item_bytes("BF16") == 2
    bits = np.frombuffer(b"\x80\x3f\x00\xc0", dtypes.to_numpy("BF16")).copy()
    assert (bits.astype(np.uint32) << 16).view(np.float32).tolist() == [1.0, -2.0]
    assert torch.from_numpy(bits).view(torch.bfloat16).tolist() == [1.0, -2.0]


def test_byte_order_and_length_of_text_do_not_change_the_name() -> None:
    assert [dtypes.to_name(np.dtype(each)) for each in (">f4", "<f4", "S5", "U7")] == ["FP32", "FP32", "BYTES", "BYTES"]


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"unknown datatype 'fp32'; known: BOOL, UINT8"):
        dtypes.to_numpy("fp32")
    with pytest.raises(BadAnswer, match="complex64"):
        dtypes.to_name(np.dtype(np.complex64))
