"""Summaries against transformers' own generate, text by text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from container.archive.describe import describe
from container.errors import BadInput
from container.model.resolve import place_of
from handlers.summarization import Summarization
from tests.handlers.models import ask, loaded, payload
from tests.handlers.seq2seq import bart

TEXTS = ["the ship lies at its berth", "the crew waits for the cook", "and for the tide, and the ship waits too"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bart(tmp_path_factory.mktemp("bart"))


@pytest.fixture(scope="module")
def handler(folder: Path) -> Summarization:
    return loaded(Summarization(), folder)


def direct(folder: Path, text: str, **parameters: Any) -> str:
    """The library by itself, one text at a time."""
    model = transformers.BartForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        ids = model.generate(**tokenizer(text, return_tensors="pt"), **parameters)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def test_a_folder_is_known_by_its_architecture_and_runs_with_the_guests(folder: Path) -> None:
    manifest = describe(folder)
    assert (manifest.kind, manifest.task, place_of(manifest)) == ("folder", "summarization", "guests")


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_length": 12},
        {"max_length": 16, "min_length": 9, "num_beams": 3},
        {"max_length": 16, "num_beams": 4, "no_repeat_ngram_size": 2, "length_penalty": 2.0, "early_stopping": True},
        {"max_new_tokens": 6, "repetition_penalty": 1.5},
    ],
)
def test_every_text_comes_out_as_from_the_library_alone_whoever_is_in_the_batch(
    handler: Summarization, folder: Path, parameters: dict[str, Any]
) -> None:
    wanted = [{"summary_text": direct(folder, text, **parameters)} for text in TEXTS]
    assert len({each["summary_text"] for each in wanted}) == 3
    assert ask(handler, {"inputs": TEXTS, "parameters": parameters}) == wanted
    alone = [handler.decode(payload({"inputs": text, "parameters": parameters})) for text in TEXTS]
    other = handler.decode(payload({"inputs": TEXTS[0], "parameters": {"max_length": 5}}))
    *together, short = handler.predict([*alone, other])
    assert together == [[each] for each in wanted]
    assert short == [{"summary_text": direct(folder, TEXTS[0], max_length=5)}]


def test_the_models_own_settings_for_the_task_apply_until_a_request_says_otherwise(tmp_path: Path) -> None:
    folder = bart(
        tmp_path / "m", task_specific_params={"summarization": {"max_length": 9, "min_length": 8, "prefix": "the "}}
    )
    handler = loaded(Summarization(), folder)
    (answer,) = ask(handler, {"inputs": TEXTS[1]})
    assert answer["summary_text"] == direct(folder, f"the {TEXTS[1]}", max_length=9, min_length=8)
    (answer,) = ask(handler, {"inputs": TEXTS[1], "parameters": {"max_new_tokens": 11}})
    wanted = direct(folder, f"the {TEXTS[1]}", max_new_tokens=11, max_length=None, min_length=8)
    assert answer["summary_text"] == wanted


def test_a_seed_gives_the_same_summary_whoever_is_in_the_batch_and_none_gives_another(handler: Summarization) -> None:
    sampled = {"inputs": TEXTS[0], "parameters": {"max_length": 30, "do_sample": True, "top_k": 0}}
    seeded = {**sampled, "parameters": {**sampled["parameters"], "seed": 5}}
    alone = ask(handler, seeded)
    first, second, *_ = handler.predict([handler.decode(payload(each)) for each in (seeded, seeded, sampled)])
    assert first == second == alone
    assert len({json.dumps(ask(handler, sampled)) for _ in range(4)}) > 1


@pytest.mark.parametrize(
    "value, said",
    [
        ({"inputs": " "}, "inputs[0] is empty"),
        ({"inputs": "the ship " * 99}, 'the model reads 64; shorten it, or send "truncation": true'),
        ({"inputs": "the ship " * 99_999}, "899991 characters, the model reads 64 tokens"),
        ({"inputs": "a", "parameters": {"max_length": 65}}, "a summary of 65 tokens is asked for"),
        ({"inputs": "a", "parameters": {"max_new_tokens": 64}}, "a summary of 65 tokens is asked for"),
        ({"inputs": "a", "parameters": {"num_beam": 2}}, "did you mean num_beams?"),
        ({"inputs": "a", "parameters": {"num_beams": 99}}, "parameter num_beams is a number, 99"),
        ({"inputs": "a", "stream": True}, "parameter stream (a boolean, True) is not done here"),
        ({"text": "a"}, "inputs is missing"),
    ],
)
def test_what_cannot_be_summarised_is_refused_with_the_reason(handler: Summarization, value: Any, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        handler.decode(payload(value))
    assert said in str(caught.value)


def test_a_long_text_is_cut_where_that_is_asked_for(handler: Summarization) -> None:
    long = {"inputs": "the ship " * 99, "parameters": {"truncation": True, "max_length": 8}}
    assert handler.size(handler.decode(payload(long))) == 64
    assert ask(handler, long)[0]["summary_text"]


def test_the_example_is_answered(handler: Summarization) -> None:
    assert ask(handler, handler.example.body)[0]["summary_text"]
