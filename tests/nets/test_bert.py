import threading
from itertools import chain

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from container.errors import BadArchive
from container.nets import bert
from container.nets.config import Unsupported

TINY = {
    "vocab_size": 120,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 40,
}


def tiny(**changes):
    torch.manual_seed(3)
    return BertModel(BertConfig(**{**TINY, **changes})).eval()


def fields(model):
    return {**model.config.to_dict(), "position_embedding_type": "absolute"}


def ours(model, ids, mask=None, types=None):
    weights = model.state_dict()
    return bert.forward(weights, bert.layout_of(bert.read(fields(model)), weights), ids, mask, types)


def padded(*lengths, vocabulary=120):
    ids = torch.randint(0, vocabulary, (len(lengths), max(lengths)))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu", "gelu_pytorch_tanh"])
@torch.inference_mode()
def test_a_small_model_computes_what_transformers_does(activation):
    model = tiny(hidden_act=activation)
    ids, _ = padded(9, 9)
    types = torch.randint(0, 2, ids.shape)
    theirs = model(input_ids=ids, token_type_ids=types).last_hidden_state
    torch.testing.assert_close(ours(model, ids, None, types), theirs, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_padding_changes_no_real_token():
    model = tiny()
    ids, mask = padded(3, 12, 7)
    theirs = model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours(model, ids, mask)[mask.bool()], theirs[mask.bool()], atol=1e-5, rtol=0)


def test_copies_of_a_network_have_one_layout_and_others_their_own():
    one, other = tiny(), tiny()
    layout = bert.layout_of(bert.read(fields(one)), one.state_dict())
    assert bert.layout_of(bert.read(fields(other)), other.state_dict()) is layout
    prefixed = {f"bert.{name}": tensor for name, tensor in other.state_dict().items()}
    assert bert.layout_of(bert.read(fields(other)), prefixed) != layout


@pytest.mark.parametrize("runs", [bert.packed_runs, bert.padded_runs])
@torch.inference_mode()
def test_texts_of_all_lengths_come_out_as_each_does_alone(runs):
    model = tiny()
    weights = model.state_dict()
    layout = bert.layout_of(bert.read(fields(model)), weights)
    texts = [torch.randint(0, 120, (length,)).tolist() for length in (5, 30, 1, 5, 17, 40, 2)]
    types = [torch.randint(0, 2, (len(text),)).tolist() for text in texts]
    found = {}
    for indices, hidden in chain.from_iterable(runs(weights, layout, texts, types)):
        assert hidden.shape == (len(indices), len(texts[indices[0]]), 48)
        found.update(zip(indices, hidden, strict=True))
    assert sorted(found) == list(range(len(texts)))
    for index, text in enumerate(texts):
        alone = model(input_ids=torch.tensor([text]), token_type_ids=torch.tensor([types[index]])).last_hidden_state[0]
        torch.testing.assert_close(found[index], alone, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_filler_of_a_run_may_be_longer_than_the_model_has_positions():
    model = tiny(max_position_embeddings=5)
    weights = model.state_dict()
    layout = bert.layout_of(bert.read(fields(model)), weights)
    texts = [[1, 2, 3, 4, 5]] * 65  # 325 tokens, filled up to 384
    ((part,),) = bert.encode(weights, layout, texts)
    theirs = model(input_ids=torch.tensor(texts)).last_hidden_state
    torch.testing.assert_close(part.hidden, theirs, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_many_texts_are_cut_into_runs_and_none_is_lost(monkeypatch):
    monkeypatch.setattr(bert, "_RUN_TOKENS", 16)
    model = tiny()
    weights = model.state_dict()
    layout = bert.layout_of(bert.read(fields(model)), weights)
    texts = [[number] * (1 + number % 7) for number in range(30)]
    runs = list(bert.encode(weights, layout, texts))
    assert len(runs) > 5
    assert sorted(index for run in runs for part in run for index in part.indices) == list(range(30))


@torch.inference_mode()
def test_a_model_of_real_size_computes_what_transformers_does():
    torch.manual_seed(0)
    model = BertModel(BertConfig()).eval()
    ids, mask = padded(64, 21, vocabulary=30522)
    theirs = model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours(model, ids, mask)[mask.bool()], theirs[mask.bool()], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_stays_half_and_near(dtype):
    model = tiny()
    ids, _ = padded(8, 8)
    half = ours(model.to(dtype), ids)
    assert half.dtype is dtype
    torch.testing.assert_close(half.float(), model(input_ids=ids).last_hidden_state.float(), atol=0.05, rtol=0)


@torch.inference_mode()
def test_a_classifier_gives_transformers_logits():
    torch.manual_seed(1)
    model = BertForSequenceClassification(BertConfig(**TINY, num_labels=5)).eval()
    weights = model.state_dict()
    layout = bert.layout_of(bert.read(fields(model)), weights, classes=5)
    ids, _ = padded(11, 11)
    logits = bert.classify(weights, layout, bert.forward(weights, layout, ids)[:, 0])
    torch.testing.assert_close(logits, model(input_ids=ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("old", [False, True])
@torch.inference_mode()
def test_checkpoints_with_and_without_prefix_and_with_gamma_and_beta_are_found(prefix, old):
    model = tiny()
    weights = {prefix + name: value for name, value in model.state_dict().items()}
    if old:
        new = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for name in [name for name in weights if "LayerNorm" in name]:
            head, _, tail = name.rpartition("LayerNorm.")
            weights[head + new["LayerNorm." + tail]] = weights.pop(name)
    weights["cls.predictions.bias"] = torch.zeros(3)  # a head that is not ours to run
    ids, _ = padded(6, 6)
    found = bert.forward(weights, bert.layout_of(bert.read(fields(model)), weights), ids)
    torch.testing.assert_close(found, model(input_ids=ids).last_hidden_state, atol=1e-5, rtol=0)


def test_threads_that_run_the_same_weights_at_once_do_not_disturb_each_other():
    model = tiny()
    weights = model.state_dict()
    layout = bert.layout_of(bert.read(fields(model)), weights)
    before = {name: value.clone() for name, value in weights.items()}
    batches = [torch.randint(0, 120, (2, 5 + number)) for number in range(4)]
    wanted = [bert.forward(weights, layout, ids) for ids in batches]
    wrong = []

    def lane(number):
        for _ in range(20):
            if not torch.equal(bert.forward(weights, layout, batches[number]), wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=lane, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(torch.equal(weights[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "mish"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"model_type": "roberta"},
        {"num_attention_heads": 5},
        {"quantization_config": {"bits": 4}},
        {"pruned_heads": {"0": [1]}},
    ],
)
def test_what_the_function_does_not_do_is_refused(change):
    with pytest.raises(Unsupported):
        bert.read({**TINY, **change})


def test_a_config_value_of_the_wrong_type_is_the_archives_mistake():
    with pytest.raises(BadArchive, match=r"config.json: .*hidden_size"):
        bert.read({"hidden_size": "wide"})


def test_a_missing_tensor_is_named():
    model = tiny()
    weights = model.state_dict()
    del weights["encoder.layer.1.output.dense.bias"]
    with pytest.raises(BadArchive, match=r"encoder\.layer\.1\.output\.dense\.bias"):
        bert.layout_of(bert.read(fields(model)), weights)


def test_a_tensor_that_does_not_fit_the_config_is_named_with_both_shapes():
    weights = tiny().state_dict()
    with pytest.raises(BadArchive, match=r"word_embeddings.* \[120, 48\].* \[121, 48\]"):
        bert.layout_of(bert.read({**TINY, "vocab_size": 121}), weights)


def test_mixed_dtypes_are_left_to_transformers():
    weights = tiny().state_dict()
    weights["embeddings.LayerNorm.weight"] = weights["embeddings.LayerNorm.weight"].half()
    with pytest.raises(Unsupported, match="float16"):
        bert.layout_of(bert.read(TINY), weights)
