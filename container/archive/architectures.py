"""Which built-in task a network is for, by the class name in its config.json, or by the Hugging Face hub's task name.

Pure. Does not cover: whether that task has a handler for the network (``model/resolve`` knows).
"""

from __future__ import annotations

from collections.abc import Sequence

#: (ending of the class name, task); the first that fits wins.
_ENDINGS = (
    ("ForSequenceClassification", "text_classification"),
    ("ForImageClassification", "image_classification"),
    ("ForCausalLM", "text_generation"),
    ("LMHeadModel", "text_generation"),
    # A masked-language head is a left-over of training; such checkpoints are used for their vectors.
    ("ForMaskedLM", "embeddings"),
    ("ForPreTraining", "embeddings"),
    ("Model", "embeddings"),
)
#: Encoder-decoders do many things under one class name: only families that are known for one are told.
_SUMMARIZERS = ("BartForConditionalGeneration", "PegasusForConditionalGeneration")

#: Names of the hub's tasks where ours differ by more than a dash.
_HUB = {
    "feature-extraction": "embeddings",
    "sentence-similarity": "embeddings",
    "sentence-embeddings": "embeddings",
    "sentiment-analysis": "text_classification",
    "text2text-generation": "summarization",
}


def task_of(architectures: Sequence[str]) -> str:
    """Return the task of the first architecture that tells one, "" if none does."""
    for name in architectures:
        if name in _SUMMARIZERS:
            return "summarization"
        for ending, task in _ENDINGS:
            if name.endswith(ending):
                return task
    return ""


def names_of(task: str) -> list[str]:
    """Return our name of a task and the hub's names for it."""
    return [task, *(hub for hub, ours in _HUB.items() if ours == task)]


def task_named(name: str) -> str:
    """Return our name of a task given as ours or as the hub's ("text-generation", "feature-extraction")."""
    return _HUB.get(name, name.replace("-", "_"))
