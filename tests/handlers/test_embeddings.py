import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import transformers

from container.errors import BadArchive, BadInput
from container.handler import Context
from container.nets.checkpoint import read
from handlers.embeddings import Embeddings
from handlers.sentences import recipe
from tests.handlers.models import MINILM, ask, bert, loaded, payload

TEXTS = [
    "The ship lies at its berth.",
    "Goods.",
    "A very long sentence about goods that are loaded and unloaded, day and night, in all weathers, by many hands.",
    "Goods are loaded and unloaded.",
]


@pytest.fixture(scope="module")
def minilm():
    return loaded(Embeddings(), MINILM)


@pytest.fixture(scope="module")
def theirs():
    model = transformers.BertModel.from_pretrained(str(MINILM)).eval()
    words = transformers.AutoTokenizer.from_pretrained(str(MINILM))

    def hidden(text):
        with torch.inference_mode():
            return model(**words(text, return_tensors="pt", truncation=True, max_length=256)).last_hidden_state[0]

    return hidden


def unit(vector):
    return vector / vector.norm()


def test_minilm_gives_the_vectors_of_transformers_pooled_and_normalised_as_its_folder_says(minilm, theirs):
    wanted = torch.stack([unit(theirs(text).mean(0)) for text in TEXTS])
    found = torch.tensor(ask(minilm, {"inputs": TEXTS}))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_a_request_may_choose_pooling_and_normalising(minilm, theirs, pooling, normalize):
    ways = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "max": lambda x: x.amax(0)}
    wanted = ways[pooling](theirs(TEXTS[0]))
    wanted = unit(wanted) if normalize else wanted
    found = ask(minilm, {"inputs": TEXTS[0], "parameters": {"pooling": pooling, "normalize": normalize}})
    torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-5, rtol=0)


def test_without_pooling_the_shape_is_that_of_the_feature_extraction_pipeline(minilm):
    pipe = transformers.pipeline("feature-extraction", model=str(MINILM), device="cpu")
    asked = {"pooling": "none", "normalize": False}
    one = ask(minilm, {"inputs": TEXTS[0], "parameters": asked})
    assert np.allclose(one, pipe(TEXTS[0]), atol=1e-5)
    many = ask(minilm, {"inputs": TEXTS[:2], "parameters": asked})
    for ours, hub in zip(many, pipe(TEXTS[:2]), strict=True):
        assert np.allclose(ours, hub, atol=1e-5)


def test_one_text_gives_a_vector_and_a_list_gives_a_list(minilm):
    assert np.shape(ask(minilm, "a text")) == (384,)
    assert np.shape(ask(minilm, ["a text"])) == (1, 384)
    assert np.shape(ask(minilm, b"a text", "text/plain")) == (384,)
    assert np.shape(ask(minilm, b"a text\nanother, with a comma\n", "text/csv")) == (2, 384)


def test_requests_in_a_batch_get_their_own_answers_whatever_their_neighbours_ask(minilm):
    asked = [
        {"inputs": TEXTS},
        {"inputs": TEXTS[2], "parameters": {"pooling": "none"}},
        {"inputs": TEXTS[1:3], "normalize": False, "pooling": "cls"},
        {"inputs": "word " * 400, "truncate": False},
        {"inputs": TEXTS[0]},
    ]
    together = minilm.predict([minilm.decode(payload(each)) for each in asked])
    for each, output in zip(asked, together, strict=True):
        (alone,) = minilm.predict([minilm.decode(payload(each))])
        if isinstance(output, BadInput):
            assert str(alone) == str(output)
        else:
            assert np.allclose(output, alone, atol=1e-5)
    assert [type(output) is BadInput for output in together] == [False, False, False, True, False]


def test_a_long_text_is_cut_as_transformers_cuts_it_or_refused_with_both_numbers(minilm, theirs):
    long = "berth " * 300
    wanted = unit(theirs(long).mean(0))
    torch.testing.assert_close(torch.tensor(ask(minilm, long)), wanted, atol=1e-5, rtol=0)
    with pytest.raises(BadInput, match=r"inputs\[1\] is \d{3} tokens, the model reads 256"):
        ask(minilm, {"inputs": ["short", long], "truncate": False})


def test_a_text_of_megabytes_is_cut_before_it_is_tokenised(minilm):
    assert np.shape(ask(minilm, "berth " * 500_000)) == (384,)


@pytest.mark.parametrize("text", ["", " ", "\u200b", "🙂" * 10])
def test_texts_of_nothing_much_have_vectors_too(minilm, text):
    assert np.isfinite(ask(minilm, text)).all()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"inputs": "a", "parameters": {"poling": "cls"}}, r"did you mean pooling\?"),
        ({"inputs": "a", "parameters": {"pooling": "median"}}, "parameter pooling is a text, 'median'"),
        ({"inputs": "a", "normalize": "yes"}, "parameter normalize is a text, 'yes': Expected `bool | null`"),
        ({"inputs": [1]}, r"inputs\[0\] is a number, 1"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(minilm, value, said):
    with pytest.raises(BadInput, match=said):
        minilm.decode(payload(value))


def test_the_size_grows_with_the_texts_and_ends_at_the_limit(minilm):
    sizes = [minilm.size(minilm.decode(payload(value))) for value in ("a", "a" * 400, ["a" * 400] * 3, "a" * 10**6)]
    assert sizes == [2, 102, 306, 256]


def test_the_example_is_answered(minilm):
    (output,) = minilm.predict([minilm.decode(Embeddings.example)])
    assert output.shape == (2, 384)
    assert output.dtype == np.float32


def test_weights_come_from_the_context_when_it_opens_them(tmp_path):
    opened = []

    class Moved(dict):
        """A checkpoint whose tensors are elsewhere on each call, as after sinking and rising."""

        def __getitem__(self, name):
            return super().__getitem__(name).clone()

    def open_weights(folder):
        opened.append(folder)
        return Moved(read(folder))

    path = bert(tmp_path)
    handler = Embeddings()
    handler.load(path, Context("m", open_weights=open_weights))
    assert opened == [path]
    assert np.allclose(ask(handler, "a text"), ask(loaded(Embeddings(), path), "a text"), atol=1e-6)


# --- folders ---------------------------------------------------------------------------------------------------------


def sentence_transformer(path, pooling, *more):
    bert(path)
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    kinds = ["Transformer", "Pooling", *more]
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": "" if number == 0 else f"{number}_{kind}",
            "type": f"st.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    return path


@pytest.mark.parametrize(
    ("pooling", "more", "wanted"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, (), ("cls", False)),
        ({"pooling_mode_mean_tokens": True}, ("Normalize",), ("mean", True)),
        ({"pooling_mode_max_tokens": True}, (), ("max", False)),
        ({"pooling_mode": "cls"}, (), ("cls", False)),
        ({"pooling_mode": "mean"}, (), ("mean", False)),
    ],
)
def test_the_recipe_is_read_from_the_folder(tmp_path, pooling, more, wanted):
    found = recipe(sentence_transformer(tmp_path, pooling, *more))
    assert (found.pooling, found.normalize) == wanted
    assert found.network == tmp_path


@pytest.mark.parametrize(
    ("pooling", "more", "said"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, (), "pools by cls_token and mean_tokens"),
        ({"pooling_mode_lasttoken": True}, (), "pools by lasttoken"),
        ({}, (), "pools by nothing"),
        ({"pooling_mode_mean_tokens": True}, ("Dense",), "has a module st.models.Dense"),
    ],
)
def test_a_recipe_that_is_not_done_here_is_refused_and_not_guessed(tmp_path, pooling, more, said):
    with pytest.raises(BadArchive, match=said):
        loaded(Embeddings(), sentence_transformer(tmp_path, pooling, *more))


def test_a_network_in_a_folder_of_its_own_is_found_and_none_outside(tmp_path):
    inner = tmp_path / "m" / "0_Transformer"
    inner.mkdir(parents=True)
    bert(inner)
    modules = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "m" / "modules.json").write_text(json.dumps(modules))
    assert np.shape(ask(loaded(Embeddings(), tmp_path / "m"), "a")) == (32,)
    for outside in ("../m/0_Transformer", str(inner)):
        modules[0]["path"] = outside
        (tmp_path / "m" / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(BadArchive, match="not inside the model's folder"):
            loaded(Embeddings(), tmp_path / "m")


def test_a_plain_folder_pools_by_mean_and_does_not_normalise(tmp_path):
    path = bert(tmp_path, tokenizer=("vocab.txt",))
    found = torch.tensor(ask(loaded(Embeddings(), path), "the ship"))
    words = transformers.AutoTokenizer.from_pretrained(str(MINILM))
    model = transformers.BertModel.from_pretrained(str(path)).eval()
    wanted = model(**words("the ship", return_tensors="pt")).last_hidden_state[0].mean(0)
    torch.testing.assert_close(found, wanted.detach(), atol=1e-5, rtol=0)


def roberta_like(path):
    """A family without a function of ours, with a tokenizer that fits."""
    torch.manual_seed(1)
    config = transformers.DistilBertConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=48)
    transformers.DistilBertModel(config).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(MINILM / name, path)
    return path


def test_another_family_is_served_by_transformers_and_is_not_reentrant(tmp_path):
    path = roberta_like(tmp_path)
    handler = loaded(Embeddings(), path)
    assert (handler.reentrant, Embeddings.native(path), Embeddings.native(MINILM)) == (False, False, True)
    words = transformers.AutoTokenizer.from_pretrained(str(path))
    model = transformers.AutoModel.from_pretrained(str(path)).eval()
    texts = [*TEXTS, "berth " * 80]
    for text, vector in zip(texts, ask(handler, texts), strict=True):
        inputs = words(text, return_tensors="pt", truncation=True, max_length=48)
        inputs.pop("token_type_ids", None)
        wanted = model(**inputs).last_hidden_state[0].mean(0)
        torch.testing.assert_close(torch.tensor(vector), wanted.detach(), atol=1e-5, rtol=0)


def test_our_own_network_needs_no_transformers():
    script = f"""
import sys
import threading
from pathlib import Path
from container.handler import Context
from handlers.embeddings import Embeddings
handler = Embeddings()
handler.load(Path({str(MINILM)!r}), Context("m"))
handler.predict([handler.decode(Embeddings.example)])
assert handler.reentrant
print("transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_more_texts_than_one_run_holds_give_way_in_between_and_may_go_on_on_another_thread(minilm):
    texts = [f"berth number {number} of the harbour, which is long and windy" for number in range(100)]
    request = minilm.decode(payload(texts))
    steps, seen = minilm.steps([request]), []
    while not seen or seen[-1] is None:
        thread = threading.Thread(target=lambda: seen.append(next(steps)))
        thread.start()
        thread.join()
    assert len(seen) > 2
    assert not torch.is_inference_mode_enabled()
    assert np.array_equal(seen[-1][0], minilm.predict([request])[0])


def test_a_body_of_millions_of_tiny_texts_is_refused(minilm):
    with pytest.raises(BadInput, match="inputs has 16385 members; at most 16384"):
        minilm.decode(payload(["a"] * 16_385))
