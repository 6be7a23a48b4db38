import torch

from container.memory.tiers import ALIGN_BYTES, pack


def test_packed_tensors_are_equal_aligned_and_in_one_block():
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.arange(7),
        "c": torch.tensor(2.5, dtype=torch.bfloat16),
        "t": torch.randn(4, 6).T,
        "none": torch.zeros(0, 3),
    }
    block, packed = pack(tensors)
    assert list(packed) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(packed[name], tensor)
        assert packed[name].dtype == tensor.dtype
        assert packed[name].is_contiguous()
        assert packed[name].untyped_storage().data_ptr() == block.untyped_storage().data_ptr()
        assert packed[name].storage_offset() * tensor.itemsize % ALIGN_BYTES == 0
    assert block.numel() == 4 * ALIGN_BYTES


def test_tied_tensors_stay_tied_and_are_stored_once():
    weight = torch.randn(100, 3)
    block, packed = pack({"wte": weight, "lm_head": weight.view(100, 3), "part": weight[:50]})
    assert packed["wte"].data_ptr() == packed["lm_head"].data_ptr()
    assert packed["part"].data_ptr() != packed["wte"].data_ptr()
    assert block.numel() == 1280 + 768
    assert torch.equal(packed["part"], weight[:50])


def test_packing_converts_what_it_is_told_to():
    tensors = {"w": torch.randn(4).half(), "ids": torch.arange(3)}
    _, packed = pack(tensors, dtype_of=lambda t: torch.float32 if t.is_floating_point() else t.dtype)
    assert packed["w"].dtype == torch.float32
    assert torch.equal(packed["w"], tensors["w"].float())
    assert packed["ids"].dtype == torch.int64


def test_an_empty_model_packs_into_nothing():
    block, packed = pack({})
    assert (block.numel(), packed) == (0, {})
