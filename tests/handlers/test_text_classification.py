import json

import numpy as np
import pytest
import torch
import transformers

from container.errors import BadArchive, BadInput
from handlers.text_classification import TextClassification
from tests.handlers.models import MINILM, POSITIONS, ask, bert, loaded, payload
from tests.handlers.test_embeddings import roberta_like

NAMES = ["calm", "late", "kind", "cold", "lost", "found"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
TEXTS = ["The crossing was calm.", "Late again and nobody said why, which was not kind at all."]


def judge(path, **changes):
    return bert(path, "BertForSequenceClassification", ("tokenizer.json", "tokenizer_config.json"), **changes)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return judge(tmp_path_factory.mktemp("judge"), initializer_range=0.2, **LABELS)


@pytest.fixture(scope="module")
def six(path):
    return loaded(TextClassification(), path)


def check_same(found, wanted):
    assert [each["label"] for each in found] == [each["label"] for each in wanted]
    assert np.allclose([each["score"] for each in found], [each["score"] for each in wanted], atol=1e-5)


def test_answers_are_those_of_the_pipeline_best_first_and_five_at_most(path, six):
    pipe = transformers.pipeline("text-classification", model=str(path), device="cpu", top_k=5)
    for found, wanted in zip(ask(six, TEXTS), pipe(TEXTS), strict=True):
        assert len(found) == 5
        check_same(found, wanted)
    check_same(ask(six, TEXTS[0]), pipe(TEXTS[0])[0] if isinstance(pipe(TEXTS[0])[0], list) else pipe(TEXTS[0]))


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (3, 3), (100, 6), (None, 6)])
def test_top_k_bounds_the_answer(six, top_k, count):
    assert len(ask(six, {"inputs": TEXTS[0], "parameters": {"top_k": top_k}})) == count


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_the_function_may_be_chosen(path, six, function):
    pipe = transformers.pipeline("text-classification", model=str(path), device="cpu", top_k=None)
    check_same(
        ask(six, {"inputs": TEXTS[1], "top_k": None, "function_to_apply": function}),
        pipe([TEXTS[1]], function_to_apply=function)[0],
    )


@pytest.mark.parametrize(
    "changes", [{"num_labels": 1}, {"problem_type": "multi_label_classification"}, {"problem_type": "regression"}]
)
def test_the_function_when_nobody_says_is_the_pipelines(tmp_path, changes):
    path = judge(tmp_path, initializer_range=0.2, **changes)
    pipe = transformers.pipeline("text-classification", model=str(path), device="cpu", top_k=None)
    check_same(ask(loaded(TextClassification(), path), TEXTS)[0], pipe(TEXTS)[0])


def test_pairs_are_judged_together(path, six):
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(path)).eval()
    words = transformers.AutoTokenizer.from_pretrained(str(path))
    scores = model(**words(TEXTS[0], TEXTS[1], return_tensors="pt")).logits[0].softmax(0).detach()
    found = ask(six, {"inputs": pair, "top_k": None})
    assert np.allclose([each["score"] for each in found], scores.sort(descending=True).values, atol=1e-5)
    mixed = ask(six, {"inputs": [TEXTS[1], pair, {"text": TEXTS[1]}], "top_k": None})
    check_same(mixed[1], found)
    check_same(mixed[0], mixed[2])


def test_a_pair_over_the_limit_is_refused_alone(six):
    long = {"inputs": {"text": "berth " * 40, "text_pair": "tide " * 40}}
    outputs = six.predict([six.decode(payload(value)) for value in (long, {"inputs": TEXTS})])
    assert isinstance(outputs[0], BadInput)
    assert f"the model reads {POSITIONS}" in str(outputs[0])
    assert [len(row) for row in outputs[1]] == [5, 5]


def test_a_long_single_text_is_cut(six):
    check_same(ask(six, "berth " * 4000), ask(six, "berth " * 400))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"inputs": 3}, "inputs is a number, 3"),
        ({"inputs": []}, "empty list"),
        ({"inputs": ["a", None]}, r"inputs\[1\] is null; expected a text, or an object"),
        ({"inputs": {"text": "a", "text_pair": 1}}, "inputs is an object"),
        ({"inputs": "a", "topk": 1}, r"did you mean top_k\?"),
        ({"inputs": "a", "top_k": 0}, "parameter top_k is a number, 0: Expected `int` >= 1"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(six, value, said):
    with pytest.raises(BadInput, match=said):
        six.decode(payload(value))


def test_a_model_without_a_trained_head_is_refused(tmp_path):
    with pytest.raises(BadArchive, match=r"pooler|classifier"):
        loaded(TextClassification(), bert(tmp_path, "BertForMaskedLM"))


def test_the_example_is_answered(six):
    assert [len(row) for row in six.predict([six.decode(TextClassification.example)])[0]] == [5, 5]


def test_another_family_is_served_by_transformers(distil):
    handler = loaded(TextClassification(), distil)
    assert (handler.reentrant, TextClassification.native(distil)) == (False, False)
    pipe = transformers.pipeline("text-classification", model=str(distil), device="cpu", top_k=5)
    for found, wanted in zip(ask(handler, TEXTS), pipe(TEXTS), strict=True):
        check_same(found, wanted)


@pytest.fixture
def distil(tmp_path):
    roberta_like(tmp_path)
    torch.manual_seed(3)
    config = transformers.AutoConfig.from_pretrained(str(tmp_path), num_labels=3)
    transformers.DistilBertForSequenceClassification(config).save_pretrained(tmp_path)
    return tmp_path


def test_no_family_tokenises_what_it_will_not_read(distil):
    handler = loaded(TextClassification(), distil)
    tokenise, given = handler._encoder._tokenizer, []

    class Counting:
        def __call__(self, *texts, **options):
            given.extend(map(len, texts))
            return tokenise(*texts, **options)

        def __getattr__(self, name):
            return getattr(tokenise, name)

    handler._encoder._tokenizer = Counting()
    check_same(ask(handler, "berth " * 100_000), ask(handler, "berth " * 400))
    assert given == [256 * handler._encoder.limit, 2400]


def test_a_tokenizer_that_never_had_to_pad_pads_texts_that_come_together(distil):
    words = json.loads((distil / "tokenizer.json").read_text())
    settings = json.loads((distil / "tokenizer_config.json").read_text())
    whole = loaded(TextClassification(), distil)
    (distil / "tokenizer.json").write_text(json.dumps(words | {"padding": None}))
    kept = {name: value for name, value in settings.items() if name != "pad_token"}
    (distil / "tokenizer_config.json").write_text(json.dumps(kept | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    handler = loaded(TextClassification(), distil)
    for found, wanted in zip(ask(handler, TEXTS), ask(whole, TEXTS), strict=True):
        check_same(found, wanted)


def test_minilm_is_no_classifier(tmp_path):
    assert TextClassification.native(MINILM)
    with pytest.raises(BadArchive, match="classifier"):
        loaded(TextClassification(), MINILM)
