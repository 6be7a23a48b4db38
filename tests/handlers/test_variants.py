"""Every spelling of a configuration answers as its transformers class does, by our function or by that class; or not.

For each family a table of configurations: those that our functions compute (native), those that they leave to
transformers (by class), and those that nobody here would compute as their author's did (refused).
"""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from container.errors import BadArchive
from container.nets.config import Unsupported
from handlers.embeddings import Embeddings
from handlers.image_classification import ImageClassification
from handlers.text_classification import TextClassification
from handlers.text_generation import TextGeneration
from tests.handlers.models import MINILM, ask, bert, gpt2, loaded, resnet
from tests.handlers.test_sentences import by_hand

TEXTS = ["the ship lies at its berth", "goods", "the tide waits for nobody, and the cook waits for the tide"]
NATIVE, CLASS = True, False


def settings(path, **changes):
    """``path`` with keys of config.json changed after the weights were saved."""
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return path


def rewrite(path, change):
    """``path`` with ``change`` done to its tensors."""
    file = path / "model.safetensors"
    save_file(change(load_file(str(file))), str(file), {"format": "pt"})
    return path


# --- BERT ------------------------------------------------------------------------------------------------------------

BERTS = [
    (NATIVE, {}),
    (NATIVE, {"hidden_act": "relu"}),
    (NATIVE, {"hidden_act": "gelu_new"}),
    (NATIVE, {"hidden_act": "gelu_fast"}),
    (NATIVE, {"hidden_act": "gelu_pytorch_tanh"}),
    (NATIVE, {"hidden_act": "silu"}),
    (NATIVE, {"layer_norm_eps": 0.1}),
    (NATIVE, {"type_vocab_size": 1}),
    (NATIVE, {"intermediate_size": 40, "num_attention_heads": 8, "num_hidden_layers": 1}),
    (NATIVE, {"chunk_size_feed_forward": 1}),
    (CLASS, {"hidden_act": "gelu_10"}),
    (CLASS, {"hidden_act": "quick_gelu"}),
    (CLASS, {"hidden_act": "mish"}),
    (CLASS, {"hidden_act": "tanh"}),
    (CLASS, {"is_decoder": True}),
    (CLASS, {"is_decoder": True, "add_cross_attention": True}),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("native", "changes"), BERTS, ids=str)
def test_vectors_of_a_bert_are_its_classes(tmp_path, native, changes):
    path = bert(tmp_path, tokenizer=("tokenizer.json", "tokenizer_config.json"), **changes)
    handler = loaded(Embeddings(), path)
    assert (Embeddings.native(path), handler.reentrant) == (native, native)
    wanted = by_hand(path, TEXTS, "mean")
    torch.testing.assert_close(torch.tensor(ask(handler, TEXTS)), wanted, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("native", "changes"), [BERTS[0], BERTS[3], BERTS[10], BERTS[13]], ids=str)
def test_classes_of_a_bert_are_its_classs(tmp_path, native, changes):
    names = ("tokenizer.json", "tokenizer_config.json")
    path = bert(tmp_path, "BertForSequenceClassification", tokenizer=names, num_labels=3, **changes)
    handler = loaded(TextClassification(), path)
    assert (TextClassification.native(path), handler.reentrant) == (native, native)
    pipe = transformers.pipeline("text-classification", model=str(path), device="cpu", top_k=3)
    for found, wanted in zip(ask(handler, TEXTS), pipe(TEXTS), strict=True):
        assert [each["label"] for each in found] == [each["label"] for each in wanted]
        assert np.allclose([each["score"] for each in found], [each["score"] for each in wanted], atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_tokens_that_were_added_to_a_bare_vocabulary_are_read_as_transformers_reads_them(tmp_path):
    names = ("vocab.txt", "tokenizer_config.json")
    path = bert(tmp_path, tokenizer=names, vocab_size=30524)
    (path / "added_tokens.json").write_text('{"[SHIP]": 30522, "berthing": 30523, "[CLS]": 101}')
    texts = ["the [SHIP] lies", "a berthing ship", "no such token"]
    handler = loaded(Embeddings(), path)
    assert not handler.reentrant
    torch.testing.assert_close(torch.tensor(ask(handler, texts)), by_hand(path, texts, "mean"), atol=1e-5, rtol=0)
    (path / "added_tokens.json").write_text('{"[CLS]": 101}')
    assert loaded(Embeddings(), path).reentrant


# --- GPT-2 -----------------------------------------------------------------------------------------------------------

GPTS = [
    (NATIVE, {}),
    (NATIVE, {"activation_function": "relu"}),
    (NATIVE, {"activation_function": "gelu"}),
    (NATIVE, {"activation_function": "silu"}),
    (NATIVE, {"n_inner": 40}),
    (NATIVE, {"layer_norm_epsilon": 0.1}),
    (NATIVE, {"scale_attn_weights": False}),
    (NATIVE, {"scale_attn_by_inverse_layer_idx": True}),
    (NATIVE, {"reorder_and_upcast_attn": True}),
    (NATIVE, {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}),
    (NATIVE, {"tie_word_embeddings": False}),
    (CLASS, {"activation_function": "tanh"}),
    (CLASS, {"activation_function": "quick_gelu"}),
    (CLASS, {"activation_function": "mish"}),
    (CLASS, {"add_cross_attention": True}),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("native", "changes"), GPTS, ids=str)
def test_texts_of_a_gpt2_are_its_classs(tmp_path, native, changes):
    path = gpt2(tmp_path, **changes)
    handler = loaded(TextGeneration(), path)
    assert (TextGeneration.native(path), handler.reentrant) == (native, native)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(path)).eval()
    words = transformers.AutoTokenizer.from_pretrained(str(path))
    prompts = ["the ship lies", "the cook"]
    found = ask(handler, {"inputs": prompts, "parameters": {"max_new_tokens": 12}})
    for prompt, [answer] in zip(prompts, found, strict=True):
        ids = words(prompt, return_tensors="pt")["input_ids"]
        made = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
        assert answer["generated_text"] == words.decode(made)


# --- ResNet ----------------------------------------------------------------------------------------------------------

RESNETS = [
    (NATIVE, {}),
    (NATIVE, {"layer_type": "basic"}),
    (NATIVE, {"downsample_in_first_stage": True}),
    (NATIVE, {"downsample_in_bottleneck": True}),
    (NATIVE, {"downsample_in_first_stage": True, "downsample_in_bottleneck": True, "depths": [2, 2]}),
    (NATIVE, {"layer_type": "basic", "downsample_in_first_stage": True, "depths": [2, 1]}),
    (NATIVE, {"embedding_size": 16, "hidden_sizes": [16, 16, 32], "depths": [1, 2, 1]}),
    (CLASS, {"hidden_act": "gelu"}),
    (CLASS, {"hidden_act": "silu"}),
    (CLASS, {"hidden_act": "relu6"}),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("native", "changes"), RESNETS, ids=str)
def test_classes_of_a_resnet_are_its_classs(tmp_path, native, changes):
    path = resnet(tmp_path, {"image_processor_type": "ViTImageProcessor", "size": 64}, **changes)
    handler = loaded(ImageClassification(), path)
    assert (ImageClassification.native(path), handler.reentrant) == (native, native)
    pixels = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    asked = {"inputs": pixels.tolist(), "parameters": {"top_k": None, "function_to_apply": "none"}}
    found = ask(handler, asked)
    model = transformers.AutoModelForImageClassification.from_pretrained(str(path)).eval()
    wanted = model(torch.tensor(pixels)).logits.detach()
    for row, logits in zip(found, wanted, strict=True):
        scores = {each["label"]: each["score"] for each in row}
        assert np.allclose([scores[model.config.id2label[index]] for index in range(7)], logits, atol=1e-4)


# --- refused: nobody here would compute what the author's class did ---------------------------------------------------


def _nomads(path):
    """A checkpoint whose places are told relatively, which transformers 5 no longer knows."""
    return settings(bert(path, tokenizer=("tokenizer.json",)), position_embedding_type="relative_key_query")


def _jina(path):
    """A family's name over a network of the author's own: it would load as plain BERT, half of it random."""
    return settings(
        bert(path, tokenizer=("tokenizer.json",)),
        architectures=["JinaBertForMaskedLM"],
        auto_map={"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
        position_embedding_type="alibi",
    )


def _half(path):
    """An own network under a known name: a layer has other tensors than the class."""
    bert(path, tokenizer=("tokenizer.json",), hidden_act="mish")
    return rewrite(path, lambda found: {name.replace("intermediate.dense", "mlp.up"): found[name] for name in found})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_nomads, r"'relative_key_query', which transformers [\d.]+ ignores; name transformers<5"),
        (_jina, r"has no network JinaBertForMaskedLM, whose code is its author's own .* code/inference.py"),
        (_half, r"the weights lack .*intermediate\.dense\.\w+, .* and 1 more, which BertModel needs"),
    ],
)
def test_what_would_be_half_random_is_refused(tmp_path, make, said):
    path = make(tmp_path)
    assert not Embeddings.native(path)
    with pytest.raises(BadArchive, match=said):
        loaded(Embeddings(), path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("act", ["gelu", "mish"])
def test_a_checkpoint_without_the_head_that_the_task_needs_is_refused(tmp_path, act):
    path = bert(tmp_path, tokenizer=("tokenizer.json",), hidden_act=act)
    settings(path, architectures=["BertForSequenceClassification"])
    with pytest.raises(BadArchive, match=r"classifier\.(bias|weight)"):
        loaded(TextClassification(), path)


@pytest.mark.filterwarnings("ignore")
def test_a_pooler_that_vectors_do_not_need_may_be_missing(tmp_path):
    path = bert(tmp_path, tokenizer=("tokenizer.json", "tokenizer_config.json"), hidden_act="mish")
    rewrite(path, lambda found: {name: found[name] for name in found if "pooler" not in name})
    assert np.shape(ask(loaded(Embeddings(), path), TEXTS)) == (3, 32)


def test_a_network_with_code_of_its_own_is_never_computed_by_ours():
    for read in ("bert", "gpt2", "resnet"):
        module = __import__(f"container.nets.{read}", fromlist=["read"])
        with pytest.raises(Unsupported, match="code of its own"):
            module.read({"auto_map": {"AutoModel": "modeling.Own"}})


def test_a_known_network_that_merely_carries_code_is_served_by_its_class(tmp_path):
    path = bert(tmp_path, tokenizer=("tokenizer.json",))
    shutil.copy(MINILM / "tokenizer_config.json", path)
    plain = ask(loaded(Embeddings(), path), TEXTS)
    settings(path, auto_map={"AutoModel": "modeling.Own"})
    handler = loaded(Embeddings(), path)
    assert not handler.reentrant
    assert np.allclose(ask(handler, TEXTS), plain, atol=1e-5)
