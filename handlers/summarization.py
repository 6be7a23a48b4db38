"""Summaries of texts by encoder-decoders, through their transformers classes: BART, Pegasus, T5 and their like.

    {"inputs": "a long article", "parameters": {"max_length": 60}}   -> [{"summary_text": "..."}]
    {"inputs": ["a", "b"]}                                           -> [{"summary_text": ...}, {"summary_text": ...}]

Answers as ``pipeline("summarization")`` did in transformers 4: lengths, beams and the rest are what the model's own
files say (``task_specific_params`` included, T5's prefix too), and a request may override them. A text over the model's
limit is refused unless ``"truncation": true`` cuts it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import torch

from container.errors import BadInput
from container.handler import Context, Handler
from container.payload import Payload
from handlers import body
from handlers.pretrained import pretrained
from handlers.steps import in_inference, outcome
from handlers.vocabulary import tokenizer_of, vocabulary_of

Meta = msgspec.Meta
Count = Annotated[int, Meta(ge=0, le=1 << 20)]

#: Texts in one request.
_MAX_TEXTS = 64
#: More than any text has that fits; longer ones are not worth tokenising to count, which may take a minute.
_CHARACTERS_PER_TOKEN = 64
#: Beams times texts in one run: their caches lie in memory side by side.
_MAX_ROWS = 32


class Parameters(msgspec.Struct, frozen=True):
    """What a request may ask, with transformers' names; what is not given is as the model's files say."""

    max_length: Count | None = None
    min_length: Count | None = None
    max_new_tokens: Count | None = None
    min_new_tokens: Count | None = None
    num_beams: Annotated[int, Meta(ge=1, le=16)] | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Meta(gt=0, le=100)] | None = None
    top_k: Count | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: Count | None = None
    early_stopping: bool | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    truncation: bool = False
    clean_up_tokenization_spaces: bool = False


#: What text_generation does and this task does not: beams end together, so there is nothing to tell before.
_ABSENT = ("stream",)
#: Those that ``generate`` knows.
_GENERATION = tuple(
    name for name in Parameters.__struct_fields__ if name not in ("seed", "truncation", "clean_up_tokenization_spaces")
)


class Request(NamedTuple):
    """One decoded request. texts: their tokens. asked: what generation is told beside the model's own settings."""

    texts: list[list[int]]
    asked: dict[str, Any]
    seed: int | None
    clean: bool


class Summarization(Handler):
    """Texts to shorter ones."""

    task = "summarization"
    example = Payload(
        b'{"inputs": "The ship lies at its berth. The crew waits for the tide, and the tide waits for nobody.", '
        b'"parameters": {"min_length": 2, "max_length": 12}}'
    )

    def load(self, model_dir: Path, context: Context) -> None:
        """See Handler. Raises BadArchive."""
        self.model = pretrained("AutoModelForSeq2SeqLM", model_dir)
        self._tokenizer = tokenizer_of(model_dir)
        self._vocabulary = vocabulary_of(self.model, self._tokenizer)
        config = self.model.config
        own = dict((getattr(config, "task_specific_params", None) or {}).get("summarization", {}))
        self._prefix = str(own.pop("prefix", None) or getattr(config, "prefix", None) or "")
        self.model.generation_config.update(**own)
        positions = getattr(config, "max_position_embeddings", None)
        self._positions = int(positions or 1 << 20)
        self._limit = min(self._positions, int(self._tokenizer.model_max_length))

    def decode(self, payload: Payload) -> Request:
        """Return the Request in ``payload``."""
        inputs, given = body.read(payload)
        texts, _ = body.texts(inputs, _MAX_TEXTS)
        wanted = body.parameters(given, Parameters, _ABSENT)
        tokens = [self._tokens(f"inputs[{i}]", text, wanted.truncation) for i, text in enumerate(texts)]
        asked = {name: value for name in _GENERATION if (value := getattr(wanted, name)) is not None}
        longest = max(asked.get("max_length", 0), asked.get("max_new_tokens", 0) + 1)
        if longest > self._positions:
            raise BadInput(f"a summary of {longest} tokens is asked for; the model has {self._positions} positions")
        if wanted.max_new_tokens is not None and "max_length" not in asked:
            asked["max_length"] = None  # else both apply, and the shorter wins
        return Request(tokens, asked, wanted.seed, wanted.clean_up_tokenization_spaces)

    def _tokens(self, where: str, text: str, cut: bool) -> list[int]:
        if not text.strip():
            raise BadInput(f"{where} is empty; there is nothing to summarise")
        most = self._limit * _CHARACTERS_PER_TOKEN
        if len(text) > most and not cut:
            raise BadInput(
                f"{where} is {len(text)} characters, the model reads {self._limit} tokens; shorten it, or send "
                '"truncation": true to have its end cut off'
            )
        text = text[:most]
        ids: list[int] = self._tokenizer(self._prefix + text, truncation=cut, max_length=self._limit)["input_ids"]
        self._vocabulary.check([ids])
        if len(ids) > self._limit:
            raise BadInput(
                f"{where} is {len(ids)} tokens, the model reads {self._limit}; shorten it, or send "
                '"truncation": true to have its end cut off'
            )
        return ids

    def size(self, value: Request) -> int:
        """Return the tokens of the texts, each as often as there are beams."""
        beams = value.asked.get("num_beams") or self.model.generation_config.num_beams or 1
        return sum(map(len, value.texts)) * int(beams)

    def predict(self, batch: list[Request]) -> list[Any]:
        """Return [{"summary_text": ...}, ...] a request."""
        return outcome(self.steps(batch))

    def steps(self, batch: list[Request]) -> Iterator[list[Any] | None]:
        """Yield None between runs and the answers last."""
        found: list[list[dict[str, str]]] = [[] for _ in batch]

        def take(run: tuple[list[int], list[str]]) -> None:
            """Put the texts of one run into their places."""
            for place, text in zip(*run, strict=True):
                found[place].append({"summary_text": text})

        yield from in_inference(self._runs(batch), take)
        yield found

    def _runs(self, batch: list[Request]) -> Iterator[tuple[list[int], list[str]]]:
        """Yield (places in ``batch``, summaries) for texts that are asked alike, in order."""
        alike: dict[str, list[tuple[int, list[int]]]] = {}
        for place, request in enumerate(batch):
            alone = f"{place} " if self._samples(request) else ""  # a seed's text must not depend on its neighbours
            key = f"{alone}{request.clean} {sorted(request.asked.items())}"
            alike.setdefault(key, []).extend((place, tokens) for tokens in request.texts)
        for rows in alike.values():
            request = batch[rows[0][0]]
            count = max(1, _MAX_ROWS // int(request.asked.get("num_beams") or 1))
            for run in (rows[start : start + count] for start in range(0, len(rows), count)):
                yield [place for place, _ in run], self._generate([tokens for _, tokens in run], request)

    def _samples(self, request: Request) -> bool:
        return bool(request.asked.get("do_sample", self.model.generation_config.do_sample))

    def _generate(self, texts: list[list[int]], request: Request) -> list[str]:
        inputs = self._tokenizer.pad({"input_ids": texts}, return_tensors="pt")
        config = copy.deepcopy(self.model.generation_config)
        config.update(**request.asked)
        with torch.random.fork_rng(devices=[], enabled=self._samples(request)):
            if self._samples(request):
                torch.manual_seed(request.seed) if request.seed is not None else torch.seed()
            made = self.model.generate(**inputs, generation_config=config)
        return [
            str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=request.clean))
            for ids in made
        ]
