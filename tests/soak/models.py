"""The models of a soak: six kinds, each with a reference that no server has a part in.

References come from transformers or from plain torch in the soak's own process, before the server starts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.chaos.traffic import TAGGED, Model
from tests.handlers.models import bert, gpt2, resnet
from tests.makers import tiny_bert, wheel
from tests.server import write_handler, write_script

#: Different questions that each model is asked, in turn.
QUESTIONS = 16
LETTERS = "abcdefghijklmnopqrstuvwxyz"
#: Texts in the one request whose answer is too large for the connection of small ones (wire/frames, BULK_BYTES).
MANY = 64


class Asked(Model):
    """A model whose questions are prepared, and their right answers with them; ``write`` fills both.

    tells_apart: whether each question has an answer of its own, so that another's answer is seen.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.questions: list[Any] = []
        self.right: list[Any] = []

    @property
    def tells_apart(self) -> bool:
        return not any(near(one, other) for at, one in enumerate(self.right) for other in self.right[:at])

    def question(self, number: int) -> Any:
        return self.questions[number % QUESTIONS]

    def check(self, name: str, number: int, answer: Any) -> str | None:
        right = self.right[number % QUESTIONS]
        return None if near(answer, right) else f"{name}: {str(answer)[:200]} where {str(right)[:200]} was due"


class Embeds(Asked):
    """A BERT of ours; the reference is transformers' BertModel and a mean by hand. One question holds many texts."""

    def write(self, folder: Path) -> None:
        tiny_bert(folder, self.seed, hidden=256, layers=4)
        tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
        model = transformers.BertModel.from_pretrained(str(folder)).eval()
        texts = [" ".join(LETTERS[(number + step) % 26] for step in range(1 + number)) for number in range(QUESTIONS)]
        with torch.inference_mode():
            self.right = [
                model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).tolist() for text in texts
            ]
        self.questions = [{"inputs": text} for text in texts]
        self.questions[-1] = {"inputs": [texts[-1]] * MANY, "parameters": {}}
        self.right[-1] = [self.right[-1]] * MANY


class Writes(Asked):
    """A GPT-2; the reference is transformers' pipeline."""

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        gpt2(folder)
        pipeline = transformers.pipeline("text-generation", model=str(folder), device="cpu")
        words = ["the ship", "a cook waits", "berth", "and the", "its tide", "for the crew", "lies", "the cook"]
        for number in range(QUESTIONS):
            prompt, count = words[number % len(words)], 4 + number
            self.questions.append({"inputs": prompt, "parameters": {"max_new_tokens": count}})
            self.right.append(pipeline(prompt, max_new_tokens=count, do_sample=False))


class Judges(Asked):
    """A BERT that classifies texts; the reference is transformers' pipeline."""

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        tokenizer = ("tokenizer.json", "tokenizer_config.json")
        bert(folder, "BertForSequenceClassification", tokenizer, num_labels=3, initializer_range=0.5)
        pipeline = transformers.pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
        for number in range(QUESTIONS):
            text = f"the ship number {number} waits for the tide"
            self.questions.append({"inputs": text, "parameters": {"top_k": 3}})
            (scores,) = pipeline([text])
            self.right.append(scores)


class Sees(Asked):
    """A ResNet that classifies pictures; the reference is transformers' model on the same pixels."""

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        resnet(folder)
        model = transformers.ResNetForImageClassification.from_pretrained(str(folder)).eval()
        for number in range(QUESTIONS):
            pixels = np.random.default_rng(number).random((1, 3, 32, 32), dtype=np.float32)
            with torch.inference_mode():
                scores = model(torch.from_numpy(pixels)).logits[0].softmax(0)
            order = scores.argsort(descending=True)[:5].tolist()
            self.questions.append({"inputs": pixels[0].tolist()})
            self.right.append([{"label": model.config.id2label[at], "score": float(scores[at])} for at in order])


WEIGHS = """
import os, torch

def model_fn(model_dir):
    net = torch.nn.Linear(1024, 8)
    net.load_state_dict(torch.load(os.path.join(model_dir, "weights.pt"), weights_only=True))
    return net

def predict_fn(data, model):
    row = torch.arange(1024, dtype=torch.float32).add(data["number"]).remainder(17)
    return {"number": data["number"], "scores": model(row).tolist()}
"""


class Weighs(Model):
    """An archive's script with weights of its own in torch; the reference is the same layer here."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.net = torch.nn.Linear(1024, 8)

    def write(self, folder: Path) -> None:
        write_script(folder, WEIGHS)
        torch.save(self.net.state_dict(), folder / "weights.pt")

    def check(self, name: str, number: int, answer: Any) -> str | None:
        with torch.inference_mode():
            row = torch.arange(1024, dtype=torch.float32).add(number).remainder(17)
            right = {"number": number, "scores": self.net(row).tolist()}
        return None if near(answer, right) else f"{name}: {answer} where {right} was due"


PACKAGED = TAGGED.replace("import os, time", "import greeting").replace(
    '"number": item["number"]}', '"number": item["number"], "version": greeting.VERSION}'
)


class Packaged(Model):
    """An archive with a requirement, and so a process and an environment of its own."""

    def __init__(self, version: str) -> None:
        self.version = version

    def write(self, folder: Path) -> None:
        write_handler(folder, PACKAGED)
        wheel(folder / "code" / "wheels", self.version)
        (folder / "code" / "requirements.txt").write_text(f"greeting=={self.version}\n")

    def check(self, name: str, number: int, answer: Any) -> str | None:
        right = {"model": name, "number": number, "version": self.version}
        return None if answer == right else f"{name}: {answer} where {right} was due"


HANGS = TAGGED.replace("import os, time", "import re").replace(
    "return [", "[re.match(r'(a+)+$', 'a' * 60 + 'b') for item in batch if 'hang' in item]\n        return ["
)


class Hangs(Model):
    """Answers rightly until it is asked to hang, and then holds the interpreter lock for ever."""

    def __init__(self, isolation: str = "shared") -> None:
        self.isolation = isolation

    def write(self, folder: Path) -> None:
        write_handler(folder, HANGS, timeout_s=8.0, isolation=self.isolation)


BREAKS = """
def model_fn(model_dir):
    raise RuntimeError("no such luck")

def predict_fn(data, model):
    return data
"""


class Breaks(Model):
    """An archive whose code raises when it is loaded: it never is."""

    def write(self, folder: Path) -> None:
        write_script(folder, BREAKS)


def residents() -> dict[str, Model]:
    """Return the models that are registered all the time; embeds-4 and embeds-5 have the same weights."""
    embedders = {f"embeds-{number}": Embeds(min(number, 4)) for number in range(6)}
    return {
        **embedders,
        "writes": Writes(0),
        "judges": Judges(0),
        "sees": Sees(0),
        "weighs-a": Weighs(1),
        "weighs-b": Weighs(2),
        "tagged": Model(),
        "packaged": Packaged("1.0"),
        "hangs": Hangs(),
        "hangs-alone": Hangs("own"),
    }


def visitors() -> dict[str, Model]:
    """Return the models that come and go."""
    return {"comes-embeds": Embeds(9), "comes-weighs": Weighs(9), "comes-tagged": Model(), "comes-broken": Breaks()}


def near(answer: Any, right: Any) -> bool:
    """Return whether two JSON values are the same but for the last digits of their numbers."""
    if isinstance(right, float):
        return isinstance(answer, (int, float)) and abs(answer - right) < 1e-4 * max(1.0, abs(right))
    if isinstance(right, list):
        return isinstance(answer, list) and len(answer) == len(right) and all(map(near, answer, right))
    if isinstance(right, dict):
        return (
            isinstance(answer, dict) and answer.keys() == right.keys() and all(near(answer[k], right[k]) for k in right)
        )
    return bool(answer == right)


def encode(model: Model, number: int) -> bytes:
    """Return the body of request ``number``."""
    return json.dumps(model.question(number)).encode()
