"""Folders of sentence-transformers give the vectors of sentence-transformers; what is not done is refused."""

import json

import numpy as np
import pytest
import torch
import transformers

from container.errors import BadArchive, BadInput
from handlers.embeddings import Embeddings
from handlers.sentences import recipe
from tests.handlers.models import MINILM, ask, bert, loaded, payload

TEXTS = ["The Ship lies at its berth.", "", "Goods are loaded and unloaded, day and night, by many hands. " * 3]
PROMPTS = {"query": "Find the ship: ", "document": "Passage: "}


def folder(path, pooling="mean", *, family="bert", more=(), prompts=None, default=None, usage=None, include=True):
    """A folder as ``SentenceTransformer.save`` writes it, with a tiny network of ``family``."""
    if family == "bert":
        bert(path, tokenizer=("tokenizer.json", "tokenizer_config.json"))
    else:
        torch.manual_seed(1)
        small = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 48}
        transformers.DistilBertModel(transformers.DistilBertConfig(**small)).save_pretrained(path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (path / name).write_bytes((MINILM / name).read_bytes())
    kinds = ["Transformer", "Pooling", *more]
    where = ["" if number == 0 else f"{number}_{kind}" for number, kind in enumerate(kinds)]
    modules = [
        {"idx": number, "name": str(number), "path": where[number], "type": f"sentence_transformers.models.{kind}"}
        for number, kind in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    for each in where[1:]:
        (path / each).mkdir()
    config = {"word_embedding_dimension": 32, f"pooling_mode_{pooling}": True, "include_prompt": include}
    (path / where[1] / "config.json").write_text(json.dumps(config))
    (path / "sentence_bert_config.json").write_text(json.dumps(usage or {}))
    said = {"prompts": PROMPTS if prompts is None else prompts, "default_prompt_name": default}
    (path / "config_sentence_transformers.json").write_text(json.dumps(said))
    return path


def by_hand(path, texts, way, *, skip="", include=True, limit=48):
    """The vectors by transformers' class, a text at a time, pooled here."""
    model = transformers.AutoModel.from_pretrained(str(path)).eval()
    words = transformers.AutoTokenizer.from_pretrained(str(path))
    rows = []
    for text in texts:
        inputs = words(skip + text, return_tensors="pt", truncation=True, max_length=limit)
        names = ("input_ids", "attention_mask")
        hidden = model(**{name: inputs[name] for name in names}).last_hidden_state[0].detach()
        hidden = hidden if include or not skip else hidden[len(words(skip)["input_ids"]) - 1 :]
        rows.append({"mean": hidden.mean(0), "max": hidden.amax(0), "cls": hidden[0]}[way])
    return torch.stack(rows)


CASES = {
    "mean": {"pooling": "mean_tokens"},
    "max and normalised": {"pooling": "max_tokens", "more": ("Normalize",)},
    "cls with a default prompt": {"pooling": "cls_token", "default": "query"},
    "a default prompt": {"pooling": "mean_tokens", "default": "query"},
    "a default prompt that is not pooled": {"pooling": "mean_tokens", "default": "query", "include": False},
    "maximum without the prompt": {"pooling": "max_tokens", "default": "document", "include": False},
    "a short limit": {"pooling": "mean_tokens", "usage": {"max_seq_length": 12}},
    "a short limit and a prompt": {"pooling": "mean_tokens", "usage": {"max_seq_length": 12}, "default": "query"},
    "another family": {"pooling": "mean_tokens", "family": "distilbert"},
    "another family with a prompt apart": {
        "pooling": "mean_tokens",
        "family": "distilbert",
        "default": "query",
        "include": False,
    },
    "another family with a short limit": {
        "pooling": "max_tokens",
        "family": "distilbert",
        "usage": {"max_seq_length": 9},
    },
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vectors_are_those_computed_by_hand(tmp_path, case):
    asked = CASES[case]
    path = folder(tmp_path, **asked)
    prompt = PROMPTS.get(asked.get("default"), "")
    limit = asked.get("usage", {}).get("max_seq_length", 48)
    wanted = by_hand(
        path,
        TEXTS,
        asked["pooling"].partition("_")[0],
        skip=prompt,
        include=asked.get("include", True),
        limit=limit,
    )
    if "Normalize" in asked.get("more", ()):
        wanted = torch.nn.functional.normalize(wanted, dim=-1)
    found = torch.tensor(ask(loaded(Embeddings(), path), {"inputs": TEXTS}))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_vectors_are_those_of_sentence_transformers(tmp_path, case):
    import sentence_transformers as theirs

    path = folder(tmp_path, **CASES[case])
    wanted = theirs.SentenceTransformer(str(path), device="cpu", local_files_only=True).encode(TEXTS)
    assert np.allclose(ask(loaded(Embeddings(), path), {"inputs": TEXTS}), wanted, atol=1e-5)


def test_a_request_chooses_its_prompt_by_name_or_by_text(tmp_path):
    handler = loaded(Embeddings(), folder(tmp_path, "mean_tokens", default="query"))
    plain = {"inputs": TEXTS[0], "parameters": {"prompt": ""}}
    assert np.allclose(ask(handler, TEXTS[0]), ask(handler, {**plain, "inputs": PROMPTS["query"] + TEXTS[0]}))
    named = ask(handler, {"inputs": TEXTS[0], "parameters": {"prompt_name": "document"}})
    assert np.allclose(named, ask(handler, {"inputs": TEXTS[0], "parameters": {"prompt": PROMPTS["document"]}}))
    assert not np.allclose(named, ask(handler, TEXTS[0]))
    with pytest.raises(BadInput, match="prompt_name is 'quest'; the prompts of this model: document, query"):
        ask(handler, {"inputs": "a", "parameters": {"prompt_name": "quest"}})
    with pytest.raises(BadInput, match="both given"):
        ask(handler, {"inputs": "a", "parameters": {"prompt_name": "query", "prompt": "x"}})


def test_a_prompt_that_leaves_no_room_for_a_text_is_refused(tmp_path):
    path = folder(tmp_path, "mean_tokens", default="query", include=False, usage={"max_seq_length": 5})
    with pytest.raises(BadInput, match="the prompt is 5 tokens, the model reads 5: no text fits"):
        ask(loaded(Embeddings(), path), "a text")


def test_requests_with_and_without_prompt_do_not_mix_in_a_batch(tmp_path):
    handler = loaded(Embeddings(), folder(tmp_path, "mean_tokens", default="query", include=False))
    asked = [{"inputs": TEXTS[0]}, {"inputs": TEXTS[0], "parameters": {"prompt": ""}}, {"inputs": TEXTS}]
    together = handler.predict([handler.decode(payload(each)) for each in asked])
    for each, output in zip(asked, together, strict=True):
        assert np.allclose(output, ask(handler, each), atol=1e-6)


def test_texts_are_lowered_where_the_folder_says_so(tmp_path):
    path = folder(tmp_path, "mean_tokens", usage={"do_lower_case": True})
    words = json.loads((path / "tokenizer.json").read_text())
    words["normalizer"] = None  # one that tells cases apart
    (path / "tokenizer.json").write_text(json.dumps(words))
    handler = loaded(Embeddings(), path)
    assert np.allclose(ask(handler, "The SHIP"), ask(handler, "the ship"))
    (path / "sentence_bert_config.json").write_text('{"do_lower_case": false}')
    handler = loaded(Embeddings(), path)
    assert not np.allclose(ask(handler, "The SHIP"), ask(handler, "the ship"))


def test_the_limit_of_sentence_transformers_wins_over_the_tokenizers(tmp_path):
    path = folder(tmp_path, "mean_tokens", usage={"max_seq_length": 20})
    (path / "tokenizer_config.json").write_text('{"model_max_length": 8}')
    assert loaded(Embeddings(), path)._encoder.limit == 20
    (path / "sentence_bert_config.json").write_text("{}")
    assert loaded(Embeddings(), path)._encoder.limit == 8


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('{"prompts": {"a": "b"}, "default_prompt_name": "c"}', "'c', which is not among its prompts"),
        ('{"prompts": ["a"]}', "Expected `object | null`"),
        ('{"prompts": {"a": 1}}', "Expected `str`"),
        ("{", "is not JSON"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused_and_not_left_out(tmp_path, written, said):
    path = folder(tmp_path, "mean_tokens")
    (path / "config_sentence_transformers.json").write_text(written)
    with pytest.raises(BadArchive, match=said):
        recipe(path)


def test_a_dense_module_is_refused_with_what_would_serve_it(tmp_path):
    with pytest.raises(BadArchive, match=r"a module sentence_transformers.models.Dense; .* code/inference.py"):
        loaded(Embeddings(), folder(tmp_path, "mean_tokens", more=("Dense",)))
