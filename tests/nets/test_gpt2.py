import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from container.nets import gpt2, packing, sequences
from container.nets.config import Unsupported

TINY = {"vocab_size": 90, "n_positions": 48, "n_embd": 32, "n_layer": 3, "n_head": 4}


def tiny(**changes):
    torch.manual_seed(5)
    model = GPT2LMHeadModel(GPT2Config(**{**TINY, **changes})).eval()
    for parameter in model.parameters():  # transformers starts so near zero that all tokens are equally likely
        parameter.data.mul_(6)
    return model


class Ours:
    """Our network over the weights of a transformers model."""

    def __init__(self, model):
        self.weights = model.state_dict()
        self.layout = gpt2.layout_of(gpt2.read(model.config.to_dict()), self.weights)

    def cache(self, rows, tokens=48):
        return gpt2.KvCache(self.layout.config, rows, tokens, like=self.weights[self.layout.words])

    def start(self, prompts, cache):
        (pack,) = packing.pack([len(prompt) for prompt in prompts], budget=10_000)
        ids, places = sequences.end_to_end(prompts, pack), sequences.positions(pack)
        return pack.order, gpt2.prefill(self.weights, self.layout, ids, places, pack.groups, cache)

    def step(self, tokens, cache):
        return gpt2.step(self.weights, self.layout, torch.tensor(tokens), cache)


def greedy(ours, prompts, count):
    """Continue ``prompts`` together by ``count`` tokens each."""
    cache = ours.cache(len(prompts))
    order, logits = ours.start(prompts, cache)
    rows = [list(prompts[index]) for index in order]
    for _ in range(count - 1):
        for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True):
            row.append(token)
        logits = ours.step([row[-1] for row in rows], cache)
    for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True):
        row.append(token)
    return [row for _, row in sorted(zip(order, rows, strict=True))]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation_function": "relu"},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"n_inner": 20},
        {"tie_word_embeddings": False},
        {"layer_norm_epsilon": 1e-3},
    ],
)
@torch.inference_mode()
def test_logits_are_transformers_after_prompts_of_different_lengths_and_a_step(changes):
    model = tiny(**changes)
    ours = Ours(model)
    prompts = [torch.randint(0, 90, (length,)).tolist() for length in (4, 9, 1, 4)]
    cache = ours.cache(4)
    order, logits = ours.start(prompts, cache)
    theirs = torch.cat([model(torch.tensor([prompts[index]])).logits[:, -1] for index in order])
    torch.testing.assert_close(logits / theirs.abs().max(), theirs / theirs.abs().max(), atol=1e-5, rtol=0)
    logits = ours.step([7, 8, 9, 10], cache)
    longer = [[*prompts[index], 7 + place] for place, index in enumerate(order)]
    theirs = torch.cat([model(torch.tensor([text])).logits[:, -1] for text in longer])
    torch.testing.assert_close(logits / theirs.abs().max(), theirs / theirs.abs().max(), atol=1e-5, rtol=0)
    assert cache.lengths == [2, 5, 5, 10]


@torch.inference_mode()
def test_greedy_texts_of_a_batch_are_token_for_token_what_generate_gives_each_alone():
    model = tiny()
    prompts = [torch.randint(0, 90, (length,)).tolist() for length in (3, 11, 6, 6, 1)]
    model.generation_config.eos_token_id = None
    alone = [
        model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=25, pad_token_id=0
        )
        for prompt in prompts
    ]
    together = greedy(Ours(model), prompts, 25)
    assert together == [row[0].tolist() for row in alone]
    assert len({tuple(row[-10:]) for row in together}) > 1, "the model says the same whatever it is asked"


@torch.inference_mode()
def test_rows_of_equal_length_and_rows_of_different_length_give_the_same():
    ours = Ours(tiny())
    even, odd = [[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6, 7]]
    assert greedy(ours, even, 9)[0] == greedy(ours, odd, 9)[0]


@torch.inference_mode()
def test_a_dropped_row_leaves_the_others_as_they_were():
    ours = Ours(tiny())
    prompts = [[1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11, 12]]
    cache = ours.cache(3)
    ours.start(prompts, cache)
    whole = ours.step([20, 21, 22], cache)
    again = ours.cache(3)
    ours.start(prompts, again)
    again.drop(0)
    assert again.lengths == [5, 4]
    torch.testing.assert_close(ours.step([22, 21], again), whole[[2, 1]], atol=1e-5, rtol=1e-5)
    again.drop(1)
    again.drop(0)
    assert again.lengths == []


@torch.inference_mode()
def test_prompts_added_in_two_runs_are_as_if_added_in_one():
    ours = Ours(tiny())
    one, two = ours.cache(2), ours.cache(2)
    ours.start([[1, 2], [3, 4, 5]], one)
    ours.start([[1, 2]], two)
    ours.start([[3, 4, 5]], two)
    assert one.lengths == two.lengths == [2, 3]
    torch.testing.assert_close(ours.step([6, 7], two), ours.step([6, 7], one), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_what_lay_in_the_caches_memory_before_does_not_show():
    ours = Ours(tiny())
    prompts = [[1, 2, 3], [4, 5, 6, 7]]
    wanted = greedy(ours, prompts, 5)
    for _ in range(5):
        torch.full_like(ours.cache(2).keys, torch.nan)  # freed at once, and most likely given to the next cache
        assert greedy(ours, prompts, 5) == wanted


def test_the_bytes_of_a_cache_can_be_told_beforehand():
    ours = Ours(tiny())
    cache = ours.cache(rows=3, tokens=17)
    assert gpt2.KvCache.bytes(ours.layout.config, 3, 17) == cache.keys.nbytes + cache.values.nbytes
    half = gpt2.KvCache(ours.layout.config, 3, 17, like=torch.empty(0, dtype=torch.float16))
    assert gpt2.KvCache.bytes(ours.layout.config, 3, 17, itemsize=2) == half.keys.nbytes + half.values.nbytes


@torch.inference_mode()
def test_tied_weights_need_no_head_of_their_own_and_the_prefix_may_be_missing():
    model = tiny()
    weights = {name.removeprefix("transformer."): value for name, value in model.transformer.state_dict().items()}
    assert "lm_head.weight" not in weights
    layout = gpt2.layout_of(gpt2.read(TINY), weights)
    assert layout.head == layout.words == "wte.weight"


def test_a_config_with_the_common_names_is_read_too():
    config = gpt2.read({"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4})
    assert (config.n_embd, config.n_layer, config.n_head, config.inner) == (32, 3, 4, 128)


@pytest.mark.parametrize(
    "change",
    [{"model_type": "gpt_neo"}, {"activation_function": "mish"}, {"add_cross_attention": True}, {"n_head": 5}],
)
def test_what_the_function_does_not_do_is_refused(change):
    with pytest.raises(Unsupported):
        gpt2.read({**TINY, **change})
