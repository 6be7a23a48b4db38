"""The same work without any server: a process that is told, line by line, what to time.

``loop``: tokenise, run and pool batches of sentences as fast as they go, on all cores. ``cold``: from_pretrained and
the first answer, with everything imported beforehand. This is the limit that a server is divided by.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from bench.machine import ROOT


class Bare:
    """The other process; ``with Bare() as bare``. Idle between questions.

    passive: OpenMP's threads sleep while they wait for each other. Slower on an idle machine (they spin otherwise),
    many times faster when anything else wants a core: the limit is the better of the two.
    """

    def __init__(self, *, passive: bool = False) -> None:
        self._policy = {"OMP_WAIT_POLICY": "PASSIVE"} if passive else {}

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "bench.peers.bare"]
        environment = {**os.environ, **self._policy}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )
        self._ask({"do": "nothing"})
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its stdin, which ends it

    def loop(self, archive: Path, texts: list[str], batch: int, seconds: float) -> float:
        """Return sentences a second at ``batch`` sentences a forward."""
        question = {"do": "loop", "folder": str(archive), "texts": texts, "batch": batch, "seconds": seconds}
        return self._ask(question)

    def cold(self, archive: Path, text: str) -> float:
        """Return the seconds of from_pretrained and one answer."""
        return self._ask({"do": "cold", "folder": str(archive), "texts": [text]})

    def _ask(self, question: dict[str, Any]) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the bare process ended; its error is on the terminal")
        return float(json.loads(answer))


class _Model:
    """A BERT with raw tokenizer, mean pooling and unit length."""

    def __init__(self, folder: str) -> None:
        import torch
        from tokenizers import Tokenizer
        from transformers import AutoModel

        self._torch = torch
        self._tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self._tokenizer.no_padding()  # MiniLM's file asks for 128 tokens always
        self._tokenizer.enable_padding()
        self._model = AutoModel.from_pretrained(folder).eval()

    def embed(self, texts: list[str]) -> Any:
        """Return vectors of unit length, a float32 tensor (texts, dimensions)."""
        torch = self._torch
        encodings = self._tokenizer.encode_batch_fast(texts)
        ids = torch.tensor([encoding.ids for encoding in encodings])
        mask = torch.tensor([encoding.attention_mask for encoding in encodings])
        with torch.inference_mode():
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)


def _loop(model: _Model, texts: list[str], batch: int, seconds: float) -> float:
    batches = [texts[at : at + batch] for at in range(0, len(texts) - batch + 1, batch)]
    for warm in batches[:3]:
        model.embed(warm)
    done, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        model.embed(batches[done % len(batches)])
        done += 1
    return done * batch / spent


def main() -> None:
    """Answer one question a line until stdin ends."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.BertModel  # noqa: B018  (imported lazily by the library: not part of what is timed)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    models: dict[str, _Model] = {}
    for line in sys.stdin:
        question = json.loads(line)
        answer = 0.0
        if question["do"] == "cold":
            began = time.perf_counter()
            _Model(question["folder"]).embed(question["texts"])
            answer = time.perf_counter() - began
        elif question["do"] == "loop":
            folder = question["folder"]
            model = models.get(folder) or models.setdefault(folder, _Model(folder))
            answer = _loop(model, question["texts"], question["batch"], question["seconds"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
