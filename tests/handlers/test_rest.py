"""Built-in tasks at rest and awake again: the same answers; what is too much to keep says so."""

import json

import pytest

from handlers.embeddings import Embeddings
from handlers.image_classification import ImageClassification
from handlers.text_classification import TextClassification
from handlers.text_generation import TextGeneration
from tests.handlers.models import bert, gpt2, loaded, resnet

TASKS = {
    "embeddings": (Embeddings, bert),
    "text_classification": (TextClassification, lambda path: bert(path, "BertForSequenceClassification")),
    "text_generation": (TextGeneration, gpt2),
    "image_classification": (ImageClassification, resnet),
}


def answers(handler):
    outputs = handler.predict([handler.decode(handler.example)])
    return [handler.encode(output, "application/json").body for output in outputs]


@pytest.mark.parametrize("task", TASKS)
def test_a_handler_that_rested_answers_as_before(tmp_path, task):
    made, folder = TASKS[task]
    handler = loaded(made(), folder(tmp_path))
    before = answers(handler)
    assert handler.rest()
    assert handler.wake()
    assert answers(handler) == before


def test_a_thousand_labels_are_too_much_to_keep(tmp_path):
    path = resnet(tmp_path, num_labels=1000)
    config = json.loads((path / "config.json").read_text())
    assert len(config["id2label"]) == 1000
    assert not loaded(ImageClassification(), path).rest()
