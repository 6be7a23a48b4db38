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


def test_placing_on_the_cpu_changes_nothing():
    module = net()
    adopt.place({"model": module}, "cpu")
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    assert set(vars(module)) == set(vars(net()))


def test_inputs_go_to_the_weights_and_only_the_outermost_call_moves_them():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, x, *, more=None, depth=0):
            self.seen.append((x.device.type, more["y"][0].device.type))
            return self(x, more=more, depth=depth - 1) if depth else x.shape

    outer = Outer()
    adopt.place([outer], "meta")  # the only other device that every machine has
    adopt.place([outer], "meta")
    assert len(outer._forward_hooks) == 1
    assert outer(torch.zeros(2), more={"y": [torch.zeros(1)]}, depth=2) == (2,)
    assert outer.seen == [("meta", "meta")] * 3
    with pytest.raises(AttributeError):
        outer(torch.zeros(2), more={"y": ["not a tensor"]})
    outer.seen.clear()
    outer(torch.zeros(2), more={"y": [torch.zeros(1)]})  # the failed call has left nothing behind
    assert outer.seen == [("meta", "meta")]
    adopt.place([outer], "cpu")
    outer.seen.clear()
    outer(torch.zeros(2), more={"y": [torch.zeros(1)]})
    assert outer.seen == [("cpu", "cpu")]


def test_generate_is_one_trip_however_often_it_calls_the_module():
    class Generator(nn.Module):
        trips = 0

        def forward(self, x):
            return x

        def generate(self, x, steps=3):
            for _ in range(steps):
                x = self(x)
            assert x.device.type == "meta"
            return x.shape

    model = Generator()
    adopt.place(model, "meta")
    assert model.generate(torch.zeros(5), steps=2) == (5,)


def test_moving_keeps_types_and_gives_back_what_need_not_move():
    from transformers import BatchEncoding
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    cpu, meta = torch.device("cpu"), torch.device("meta")
    Pair = collections.namedtuple("Pair", "a b")
    output = BaseModelOutputWithPooling(last_hidden_state=torch.zeros(1), hidden_states=(torch.zeros(2), torch.ones(1)))
    encoding = BatchEncoding({"input_ids": torch.zeros(3), "n": 1})
    there = adopt.moved([output, Pair(1, torch.zeros(4)), encoding, "text", {"k": (torch.zeros(5),)}], meta)
    assert [type(each) for each in there] == [BaseModelOutputWithPooling, Pair, BatchEncoding, str, dict]
    assert there[0].last_hidden_state.device == there[0]["hidden_states"][1].device == meta
    assert list(there[0]) == ["last_hidden_state", "hidden_states"]
    assert there[0].to_tuple()[0] is there[0].last_hidden_state
    assert there[1].b.device == there[2]["input_ids"].device == there[4]["k"][0].device == meta
    assert output.last_hidden_state.device == encoding["input_ids"].device == cpu
    assert adopt.moved(output, cpu) is output
    assert adopt.moved(encoding, cpu) is encoding
    packed = nn.utils.rnn.pack_sequence([torch.zeros(2), torch.zeros(1)])
    assert adopt.moved([packed], cpu)[0].batch_sizes.device == cpu


def test_a_pipeline_is_adopted_with_its_network():
    from transformers import BertConfig, BertModel, BertTokenizer, FeatureExtractionPipeline

    model = BertModel(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    pipeline = FeatureExtractionPipeline(model=model.eval(), tokenizer=BertTokenizer())
    assert adopt.find_modules({"pipe": pipeline}) == [model]
    adopt.place([pipeline], "meta")
    assert pipeline.device == torch.device("meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="not run: no GPU")
def test_on_a_gpu_answers_are_those_of_the_cpu_and_lie_where_the_caller_had_the_inputs():
    from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    bert = BertModel(BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)).eval()
    gpt = GPT2LMHeadModel(
        GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=98)
    ).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = bert(input_ids=ids), gpt.generate(ids, max_new_tokens=5, do_sample=False)
        adopt.place({"a": bert, "b": gpt}, "cuda:0")
        found = bert(input_ids=ids), gpt.generate(ids, max_new_tokens=5, do_sample=False)
    assert next(bert.parameters()).device.type == "cuda"
    assert found[0].last_hidden_state.device.type == found[1].device.type == "cpu"
    torch.testing.assert_close(found[0].last_hidden_state, expected[0].last_hidden_state, rtol=1e-4, atol=1e-4)
    assert found[1].tolist() == expected[1].tolist()
    with torch.no_grad():
        assert bert(input_ids=ids.cuda()).pooler_output.device.type == "cuda"
    adopt.place({"a": bert, "b": gpt}, "cpu")
    assert bert(input_ids=ids).pooler_output.device.type == "cpu"
