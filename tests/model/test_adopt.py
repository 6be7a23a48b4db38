import collections
import functools
import types

import pytest
import torch
from torch import nn

from container.model import adopt


class Holder:
    """What authors return: anything."""

    def __init__(self, **parts):
        self.__dict__.update(parts)


class Slotted:
    __slots__ = ("net", "unset")

    def __init__(self, net):
        self.net = net


def net(size=4):
    return nn.Linear(size, size, bias=False)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m,
        lambda m: {"model": m, "tokenizer": len},
        lambda m: [1, ("a", m)],
        lambda m: Holder(inner=Holder(model=m)),
        lambda m: Slotted(m),
        lambda m: functools.partial(lambda model, x: model(x), m),
        lambda m: lambda x: m(x),
        lambda m: Holder(run=m.forward),
        lambda m: types.SimpleNamespace(layers={"a": [m, m]}),
        lambda m: collections.UserDict(model=m),
    ],
    ids=["module", "dict", "nested", "object", "slots", "partial", "closure", "method", "twice", "userdict"],
)
def test_the_module_is_found_in_whatever_was_returned(wrap):
    module = net()
    assert adopt.find_modules(wrap(module)) == [module]
    assert adopt.measure(wrap(module)) == 64


def test_only_the_outermost_of_nested_modules_is_found():
    whole = nn.Sequential(net(), net())
    assert adopt.find_modules({"part": whole[0], "whole": whole, "other": (other := net())}) == [whole, other]


def test_circles_and_deep_or_strange_objects_end():
    circle = Holder(net=net())
    circle.me = [circle]
    assert len(adopt.find_modules(circle)) == 1
    deep = net()
    for _ in range(50):
        deep = [deep]
    assert adopt.find_modules(deep) == []
    assert adopt.find_modules([None, 1, "x", b"y", int, len, types, object(), iter([1])]) == []


def test_each_storage_counts_once():
    module = net()
    tied = nn.Module()
    tied.a, tied.b = module, nn.Linear(4, 4, bias=False)
    tied.b.weight = module.weight
    tied.register_buffer("rows", module.weight.data[:2])
    assert adopt.measure(tied) == 64
    assert adopt.measure({"net": tied, "table": torch.zeros(10), "slice": module.weight.data[1]}) == 64 + 40
    assert adopt.measure(torch.zeros(8, dtype=torch.int8)[2:4]) == 8


def test_numpy_arrays_count_too_but_not_views_maps_or_what_a_tensor_holds(tmp_path):
    import numpy as np

    table = np.zeros((10, 10), np.float32)
    (tmp_path / "map").write_bytes(bytes(800))
    mapped = np.memmap(tmp_path / "map", np.float32)
    shared = torch.zeros(5)
    assert adopt.measure({"a": table, "b": [table[2:], table.T]}) == 400
    assert adopt.measure([mapped, mapped[1:], np.asarray(mapped)]) == 0
    assert adopt.measure([shared, shared.numpy()]) == 20
    assert adopt.measure([torch.from_numpy(table), table]) == 400


def test_sparse_and_meta_tensors_are_measured_by_what_they_hold():
    assert adopt.measure(torch.eye(4).to_sparse()) == 4 * 4 + 2 * 4 * 8
    with pytest.warns(UserWarning, match="beta state"):
        rows = torch.eye(4).to_sparse_csr()
    assert adopt.measure(rows) >= 4 * 4 + (5 + 4) * 8
    assert adopt.measure(torch.zeros(4, device="meta")) == 0
    assert adopt.measure("no tensor at all") == 0


class Wrapped(torch.Tensor):
    """A subclass, as quantisation libraries use."""


def test_what_cannot_be_moved_as_a_module_is_opaque():
    traced = torch.jit.trace(net(), torch.zeros(1, 4))

    class NamesADevice(nn.Module):
        def forward(self, x):
            return x + torch.zeros(4, device="cpu")

    spread = net()
    spread.hf_device_map = {"": 0}
    buffer = nn.Module()
    buffer.register_buffer("b", torch.eye(2).to_sparse())
    assert not adopt.opaque({"model": net(), "traced": traced, "plain": torch.zeros(2)})
    assert not adopt.opaque(None)
    for stuck in (
        torch.jit.freeze(traced.eval()),
        torch.jit.script(NamesADevice()),
        spread,
        buffer,
        nn.ParameterList([nn.Parameter(torch.zeros(2).as_subclass(Wrapped))]),
        nn.Linear(2, 2, device="meta"),
        nn.LazyLinear(2),
    ):
        assert adopt.opaque([stuck]), stuck


@pytest.mark.filterwarnings("ignore:.*quantiz", "ignore:.*TypedStorage", "ignore:.*reduce_range")
def test_quantised_models_are_opaque_whichever_way_they_were_made():
    weights = torch.quantize_per_tensor(torch.eye(4), 0.1, 0, torch.qint8)
    held = nn.Module()
    held.register_buffer("weights", weights)
    assert adopt.opaque({"model": held})
    assert adopt.opaque([weights])
    if "fbgemm" in torch.backends.quantized.supported_engines:
        dynamic = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
        assert adopt.opaque([dynamic])
        assert adopt.measure([dynamic]) == 4 * 4 + 4 * 4, "a byte a weight, and a bias of floats"
