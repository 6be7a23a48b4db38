"""Callers that never stop asking, and know what each answer must be.

Every request carries a number and every answer must carry the same one: an answer that was given to another, or given
twice, is seen. ``Callers`` counts what was told and keeps what was wrong.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.makers import tiny_bert
from tests.server import Server, write_handler

#: Answers with the number it was asked with, and with its own name.
TAGGED = """
import os, time
from container.handler import Handler

class Tagged(Handler):
    def load(self, model_dir, context):
        self.name = context.name

    def predict(self, batch):
        return [{"model": self.name, "number": item["number"]} for item in batch]
"""

#: What a caller may be told while something is broken or overloaded; anything else is wrong.
EXCUSES = frozenset({503, 504, 507})


class Told:
    """Everything the callers were told: codes, wrong answers, and when each model last failed and answered."""

    def __init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.failed_at: dict[str, float] = {}
        self.answered_at: dict[str, float] = {}
        self.longest_s = 0.0


class Callers:
    """Threads that ask ``models`` in turn until ``stop``; ``expected(model, number)`` checks an answer."""

    def __init__(
        self, server: Server, models: dict[str, Model], count: int = 4, pause_s: float = 0.005, *, echoes: bool = True
    ) -> None:
        self.told = Told()
        #: Whether the door gives the id of a request back.
        self._echoes = echoes
        self._server = server
        self._models = models
        self._numbers = itertools.count()
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> Told:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        return self.told

    def _run(self, first: int) -> None:
        names = list(self._models)
        link = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=70)
        for turn in itertools.count(first):
            if self._stopping.is_set():
                break
            name, number = names[turn % len(names)], next(self._numbers)
            self._one(link, name, number)
            time.sleep(self._pause_s)
        link.close()

    def _one(self, link: http.client.HTTPConnection, name: str, number: int) -> None:
        told, model = self.told, self._models[name]
        headers = {"Content-Type": "application/json", "X-Amzn-SageMaker-Inference-Id": f"n{number}"}
        started = time.monotonic()
        try:
            link.request("POST", f"/models/{name}/invoke", json.dumps(model.question(number)), headers)
            answer = link.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            link.close()
            told.codes["hung up"] += 1
            told.failed_at[name] = time.monotonic()
            return
        finally:
            told.longest_s = max(told.longest_s, time.monotonic() - started)
        told.codes[str(answer.status)] += 1
        if self._echoes and answer.getheader("X-Amzn-SageMaker-Inference-Id") != f"n{number}":
            told.wrong.append(
                f"request n{number} got the answer of {answer.getheader('X-Amzn-SageMaker-Inference-Id')}"
            )
        if answer.status == 200:
            told.answered_at[name] = time.monotonic()
            if (problem := model.check(name, number, json.loads(body))) is not None:
                told.wrong.append(problem)
        elif answer.status in EXCUSES or answer.status in model.may_say:
            told.failed_at[name] = time.monotonic()
        else:
            told.wrong.append(f"{name}: {answer.status} {body[:300]!r}")


class Model:
    """One model on disk: how it is asked, and what it must say."""

    may_say: frozenset[int] = frozenset()

    def write(self, folder: Path) -> None:
        """Put its archive into ``folder``."""
        write_handler(folder, TAGGED)

    def question(self, number: int) -> Any:
        return {"number": number}

    def check(self, name: str, number: int, answer: Any) -> str | None:
        """Return what is wrong with ``answer``, None if nothing is."""
        right = {"model": name, "number": number}
        return None if answer == right else f"{name}: {answer} where {right} was due"


class Embedder(Model):
    """A BERT of ours; the reference is what it said while nothing was broken."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.reference: list[list[float]] = []

    def write(self, folder: Path) -> None:
        tiny_bert(folder, self.seed)

    def question(self, number: int) -> Any:
        return {"inputs": "abcdefgh"[number % 8]}

    def learn(self, ask: Callable[[Any], Any]) -> None:
        self.reference = [ask(self.question(number)) for number in range(8)]

    def check(self, name: str, number: int, answer: Any) -> str | None:
        right = self.reference[number % 8]
        near = len(answer) == len(right) and all(abs(a - b) < 1e-4 for a, b in zip(answer, right, strict=True))
        return None if near else f"{name}: another vector than before for request {number}"


def house(server: Server) -> dict[str, Model]:
    """Two guests and two embedders, loaded, their references taken."""
    models: dict[str, Model] = {"left": Model(), "right": Model(), "one": Embedder(1), "two": Embedder(2)}
    for name, model in models.items():
        model.write(server.folder(name))
        server.load(name).raise_for_status()
        if isinstance(model, Embedder):
            model.learn(lambda question, name=name: server.invoke(name, question).raise_for_status().json())
    return models
