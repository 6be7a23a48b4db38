"""Text told while it grows: nothing twice, nothing lost, no half characters, nothing past a stop text."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer, decoders

from container.errors import BadInput
from container.handler import Parts, Ready
from container.payload import Payload
from handlers.stream import EVENTS, LINES, TEXT, Telling, form
from handlers.text_generation import TextGeneration
from tests.handlers.models import gpt2, loaded, payload


@cache
def tokenizer() -> ByteLevelBPETokenizer:
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(["the ship lies at its berth"], vocab_size=270, min_frequency=1)
    made.decoder = decoders.ByteLevel()
    return made


@given(
    st.text(alphabet="ship üñ船🚢 \n", max_size=30), st.lists(st.text("ship 船", min_size=1, max_size=4), max_size=3)
)
def test_what_is_told_piece_by_piece_is_the_whole_text_and_never_past_a_stop(text: str, stops: list[str]) -> None:
    tokens = tokenizer().encode(text).ids
    telling = Telling(TEXT, tokenizer().decode, stops)
    cuts = [at for stop in stops if (at := text.find(stop)) >= 0]
    told = ""
    for count in range(1, len(tokens) + 1):
        if cuts and any(stop in tokenizer().decode(tokens[:count]) for stop in stops):
            tokens = tokens[:count]  # the generation ends here, and ``last`` tells the rest
            break
        if count < len(tokens) and (piece := telling.piece(tokens[:count])) is not None:
            told += piece.body.decode()
            assert text.startswith(told)
    added = text[: min(cuts)] if cuts else text
    assert added.startswith(told)
    assert told + telling.last(tokens, added, added).body.decode() == added


@pytest.mark.parametrize(
    "asked, accept, wanted",
    [
        (None, "", ""),
        (None, "application/json", ""),
        (None, "*/*", ""),
        (None, "text/*", ""),
        (None, "text/plain", ""),
        (None, "text/event-stream", EVENTS),
        (None, "application/json;q=0.5, text/event-stream", EVENTS),
        (None, "application/jsonlines", LINES),
        (True, "", EVENTS),
        (True, "application/json", EVENTS),
        (True, "text/plain", TEXT),
        (True, "application/jsonlines", LINES),
        (True, "image/png", EVENTS),
        (False, "text/event-stream", ""),
    ],
)
def test_when_a_text_is_told_while_it_grows_and_how(asked: bool | None, accept: str, wanted: str) -> None:
    assert form(asked, accept) == wanted


def run(handler: TextGeneration, *payloads: Payload) -> tuple[list[tuple[int, Payload]], dict[int, Any]]:
    """The pieces in the order they came, and each request's answer as it goes out."""
    batch = [handler.decode(each) for each in payloads]
    pieces: list[tuple[int, Payload]] = []
    early: dict[int, Any] = {}
    last: list[Any] = []
    for step in handler.steps(batch):
        if isinstance(step, Parts):
            pieces += step.items()
        elif isinstance(step, Ready):
            early |= step
        elif step is not None:
            last = step
    return pieces, dict(enumerate(last)) | early


def events(pieces: list[Payload]) -> list[dict[str, Any]]:
    text = b"".join(piece.body for piece in pieces).decode()
    assert text.endswith("\n\n")
    return [json.loads(each.removeprefix("data:")) for each in text.split("\n\n")[:-1]]


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> TextGeneration:
    return loaded(TextGeneration(), gpt2(tmp_path_factory.mktemp("gpt2")))


ASK = {"inputs": "the ship", "parameters": {"max_new_tokens": 12, "return_full_text": False}}


def test_events_join_to_the_answer_without_a_stream(handler: TextGeneration) -> None:
    _, whole = run(handler, payload(ASK))
    (wanted,) = whole[0]
    pieces, ended = run(handler, payload({**ASK, "stream": True}))
    told = events([piece for _, piece in pieces] + [ended[0]])
    assert {piece.content_type for _, piece in pieces} == {EVENTS}
    assert "".join(event["token"]["text"] for event in told) == wanted["generated_text"]
    assert [event["generated_text"] for event in told[:-1]] == [None] * (len(told) - 1)
    assert told[-1]["generated_text"] == wanted["generated_text"]
    assert len(told) > 3
    assert [event["index"] for event in told] == sorted(event["index"] for event in told)


def test_plain_text_and_lines_hold_the_same(handler: TextGeneration) -> None:
    _, whole = run(handler, payload(ASK))
    (wanted,) = whole[0]
    for accept in (TEXT, LINES):
        pieces, ended = run(handler, payload({**ASK, "stream": True}, accept=accept))
        told = b"".join(piece.body for piece in [*(each for _, each in pieces), ended[0]]).decode()
        if accept == LINES:
            told = "".join(json.loads(line)["token"]["text"] for line in told.splitlines())
        assert told == wanted["generated_text"]


def test_a_stop_text_is_never_told_not_even_its_beginning(handler: TextGeneration) -> None:
    _, whole = run(handler, payload(ASK))
    text = whole[0][0]["generated_text"]
    stop = text[4:7]
    asked = {**ASK, "stream": True, "parameters": {**ASK["parameters"], "stop": [stop]}}
    pieces, ended = run(handler, payload(asked, accept=TEXT))
    told = "".join(piece.body.decode() for piece in [*(each for _, each in pieces), ended[0]])
    assert told == text[: text.find(stop)]


def test_a_short_text_beside_a_long_one_is_answered_when_it_ends(handler: TextGeneration) -> None:
    short = {"inputs": "the ship", "parameters": {"max_new_tokens": 2}}
    batch = [handler.decode(payload(each)) for each in (short, {**short, "parameters": {"max_new_tokens": 9}})]
    kinds = [type(step) for step in handler.steps(batch)]
    assert Ready in kinds and kinds.index(Ready) < 5 < len(kinds)
    _, answers = run(handler, payload(short), payload({**short, "parameters": {"max_new_tokens": 9}}))
    assert answers[0] == run(handler, payload(short))[1][0]


def test_several_texts_cannot_be_streamed(handler: TextGeneration) -> None:
    with pytest.raises(BadInput, match="only one text can be streamed"):
        handler.decode(payload({"inputs": ["a", "b"], "stream": True}))
