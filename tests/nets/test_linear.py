import pytest
import torch
import torch.nn.functional as F

from container.nets import linear as module
from container.nets.linear import ACTIVATIONS, linear

REFERENCE = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "swish": F.silu}


@pytest.mark.parametrize("activation", ["", *ACTIVATIONS])
@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_activation_is_what_torch_computes_by_whichever_kernel(activation, rows, transposed):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 256), torch.randn(512, 256) / 16, torch.randn(512)
    if transposed:  # GPT-2 keeps its weights the other way round
        weight = weight.t().contiguous().t()
    plain = F.linear(x, weight, bias)
    tanh = lambda value: F.gelu(value, approximate="tanh")  # noqa: E731
    wanted = REFERENCE.get(activation, tanh)(plain) if activation else plain
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight, bias, activation), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_go_to_torch_and_keep_their_dtype(dtype):
    x, weight = torch.randn(64, 256).to(dtype), torch.randn(512, 256).to(dtype)
    torch.testing.assert_close(linear(x, weight, None, "gelu"), F.gelu(F.linear(x, weight)))


def test_without_onednn_the_same_comes_from_torch(monkeypatch):
    x, weight, bias = torch.randn(64, 256), torch.randn(512, 256) / 16, torch.randn(512)
    fast = linear(x, weight, bias, "gelu")
    monkeypatch.setattr(module, "_onednn", None)
    torch.testing.assert_close(linear(x, weight, bias, "gelu"), fast, atol=1e-5, rtol=1e-5)


def test_weights_at_an_odd_address_as_in_a_mapped_file_give_the_same():
    x, bias = torch.randn(64, 256), torch.randn(512)
    raw = torch.randn(512 * 256 + 1) / 16
    odd = raw[1:].view(512, 256)
    torch.testing.assert_close(linear(x, odd, bias), F.linear(x, odd.clone(), bias), atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(module._onednn is None, reason="this torch has no oneDNN for x86")
def test_large_products_take_the_fast_kernel_and_small_ones_do_not(monkeypatch):
    taken, kernel = [], module._onednn
    monkeypatch.setattr(module, "_onednn", lambda x, *rest: taken.append(tuple(x.shape)) or kernel(x, *rest))
    for rows, width in ((16, 256), (2, 16), (1, 256)):
        linear(torch.randn(rows, width), torch.randn(512, width), None)
    assert taken == [(16, 256)]
