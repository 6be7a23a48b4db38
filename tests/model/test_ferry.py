import collections
import copy
import pickle

import pytest
import torch
from torch import nn

from container.model import adopt, ferry
from container.model.moving import Adopted


def placed(value, device):
    """Return the modules inside ``value``, lifted to ``device``."""
    adopted = Adopted(adopt.finds(value), torch.device(device), rehearsed=False)
    adopted.lift()
    return adopted


def test_inputs_go_to_the_weights_and_only_the_outermost_call_moves_them():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, x, *, more=None, depth=0):
            self.seen.append((x.device.type, more["y"][0].device.type))
            return self(x, more=more, depth=depth - 1) if depth else x.shape

    outer = Outer()
    there = placed([outer], "meta")  # the only other device that every machine has
    placed([outer], "meta")
    assert len(outer._forward_hooks) == 1
    assert outer(torch.zeros(2), more={"y": [torch.zeros(1)]}, depth=2) == (2,)
    assert outer.seen == [("meta", "meta")] * 3
    with pytest.raises(AttributeError):
        outer(torch.zeros(2), more={"y": ["not a tensor"]})
    outer.seen.clear()
    outer(torch.zeros(2), more={"y": [torch.zeros(1)]})  # the failed call has left nothing behind
    assert outer.seen == [("meta", "meta")]
    there.lower()
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
    placed(model, "meta")
    assert model.generate(torch.zeros(5), steps=2) == (5,)


def test_inputs_of_torchscript_which_takes_no_hooks_go_to_the_weights_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 2)

        def forward(self, x):
            return x.is_meta

    module = torch.jit.script(Net())
    there = placed([module], "meta")
    assert module(torch.zeros(1, 2))
    assert module(x=torch.zeros(1, 2))
    there.forget()
    ferry.of(module).device = None
    assert not module(torch.zeros(1, 2))


def test_an_author_may_copy_and_pickle_a_module_that_was_placed():
    class Where(nn.Module):
        def forward(self, x):
            return x.device.type

    module = Where()
    placed(module, "meta")
    twin = copy.deepcopy(module)
    assert twin(torch.zeros(1)) == "meta"
    ferry.of(module).device = None
    assert (module(torch.zeros(1)), twin(torch.zeros(1))) == ("cpu", "meta")
    net = nn.Linear(1, 1)
    placed(net, "cpu")
    ferry.of(net).device = None
    assert pickle.loads(pickle.dumps(net))(torch.ones(1, 1)) == net(torch.ones(1, 1))


def test_moving_keeps_types_and_gives_back_what_need_not_move():
    from transformers import BatchEncoding
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    cpu, meta = torch.device("cpu"), torch.device("meta")
    Pair = collections.namedtuple("Pair", "a b")
    output = BaseModelOutputWithPooling(last_hidden_state=torch.zeros(1), hidden_states=(torch.zeros(2), torch.ones(1)))
    encoding = BatchEncoding({"input_ids": torch.zeros(3), "n": 1})
    there = ferry.moved([output, Pair(1, torch.zeros(4)), encoding, "text", {"k": (torch.zeros(5),)}], meta)
    assert [type(each) for each in there] == [BaseModelOutputWithPooling, Pair, BatchEncoding, str, dict]
    assert there[0].last_hidden_state.device == there[0]["hidden_states"][1].device == meta
    assert list(there[0]) == ["last_hidden_state", "hidden_states"]
    assert there[0].to_tuple()[0] is there[0].last_hidden_state
    assert there[1].b.device == there[2]["input_ids"].device == there[4]["k"][0].device == meta
    assert output.last_hidden_state.device == encoding["input_ids"].device == cpu
    assert ferry.moved(output, cpu) is output
    assert ferry.moved(encoding, cpu) is encoding
    packed = nn.utils.rnn.pack_sequence([torch.zeros(2), torch.zeros(1)])
    assert ferry.moved([packed], cpu)[0].batch_sizes.device == cpu


def test_a_pipeline_goes_to_the_device_with_its_network():
    from transformers import BertConfig, BertModel, BertTokenizer, FeatureExtractionPipeline

    model = BertModel(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    pipeline = FeatureExtractionPipeline(model=model.eval(), tokenizer=BertTokenizer())
    assert adopt.find_modules({"pipe": pipeline}) == [model]
    placed([pipeline], "meta")
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
        there = placed({"a": bert, "b": gpt}, "cuda:0")
        found = bert(input_ids=ids), gpt.generate(ids, max_new_tokens=5, do_sample=False)
    assert next(bert.parameters()).device.type == "cuda"
    assert found[0].last_hidden_state.device.type == found[1].device.type == "cpu"
    torch.testing.assert_close(found[0].last_hidden_state, expected[0].last_hidden_state, rtol=1e-4, atol=1e-4)
    assert found[1].tolist() == expected[1].tolist()
    with torch.no_grad():
        assert bert(input_ids=ids.cuda()).pooler_output.device.type == "cuda"
    there.lower()
    assert bert(input_ids=ids).pooler_output.device.type == "cpu"
