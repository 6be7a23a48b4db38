"""Sentence embeddings: one vector a text, by BERT natively and by other encoders through transformers.

    {"inputs": "text"}                    -> [0.1, ...]                 one text, one vector
    {"inputs": ["a", "b"]}                -> [[0.1, ...], [0.2, ...]]
    {"inputs": "text", "parameters": {"pooling": "none"}} -> [[[...], ...]]   a vector a token, as feature-extraction

Prompt, pooling and normalising are what the folder says in the layout of sentence-transformers (``sentences.py``), else
none, the mean of the tokens, and no; ``prompt_name`` or ``prompt``, ``pooling`` and ``normalize`` of a request override
them. Texts over the model's limit are cut, or refused with ``"truncate": false``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from container.errors import BadInput
from container.handler import Context, Handler
from container.nets import bert
from container.payload import Payload
from handlers import body
from handlers.encoders import BertEncoder, Encoder, estimate, is_native, open_encoder, tokenised
from handlers.sentences import Pooling, Recipe, recipe
from handlers.steps import in_inference, outcome, shares


class Parameters(msgspec.Struct, frozen=True):
    """What a request may ask; None = as the model's folder says."""

    pooling: Pooling | None = None
    normalize: bool | None = None
    truncate: bool = True
    prompt: str | None = None
    prompt_name: str | None = None


class Request(NamedTuple):
    """One decoded request. texts: with their prompt. single: ``inputs`` was one text, not a list.

    skip: how many tokens at the beginning of each text its vector leaves out: those of a prompt that is not pooled.
    """

    texts: list[str]
    single: bool
    pooling: Pooling
    normalize: bool
    truncate: bool
    skip: int = 0


class Embeddings(Handler):
    """Texts to vectors."""

    task = "embeddings"
    example = Payload(b'{"inputs": ["The ship lies at its berth.", "Goods are loaded and unloaded."]}')

    _encoder: Encoder
    _recipe: Recipe

    @classmethod
    def native(cls, model_dir: Path) -> bool:
        """Return whether the model is served by our function: without transformers, re-entrant, shareable."""
        return is_native(recipe(model_dir).network)

    def load(self, model_dir: Path, context: Context) -> None:
        """See Handler. Raises BadArchive."""
        self._recipe = recipe(model_dir)
        self._encoder = open_encoder(self._recipe.network, context, "AutoModel")
        self.reentrant = isinstance(self._encoder, BertEncoder)

    def rest(self) -> bool:
        """See Handler."""
        return self._encoder.rest()

    def wake(self) -> bool:
        """See Handler."""
        return self._encoder.wake()

    def decode(self, payload: Payload) -> Request:
        """Return the Request in ``payload``."""
        inputs, given = body.read(payload)
        texts, single = body.texts(inputs)
        wanted = body.parameters(given, Parameters)
        normalize = self._recipe.normalize if wanted.normalize is None else wanted.normalize
        pooling = wanted.pooling or self._recipe.pooling
        prompt = self._recipe.chosen(wanted.prompt_name, wanted.prompt)
        if not prompt:
            return Request(texts, single, pooling, normalize, wanted.truncate)
        skip = 0
        if not self._recipe.include_prompt and pooling != "none":
            skip = self._encoder.prompt_tokens(prompt)
            if skip >= self._encoder.limit - 1:
                raise BadInput(f"the prompt is {skip} tokens, the model reads {self._encoder.limit}: no text fits")
        return Request([prompt + text for text in texts], single, pooling, normalize, wanted.truncate, skip)

    def size(self, value: Request) -> int:
        """Return about how many tokens the texts have together."""
        return estimate(value.texts, self._encoder.limit)

    def predict(self, batch: list[Request]) -> list[Any]:
        """Return a vector [H], rows [n, H] or (pooling none) a list of [1, T, H] a request, float32."""
        return outcome(self.steps(batch))

    def steps(self, batch: list[Request]) -> Iterator[list[Any] | None]:
        """Yield None between runs of the network and the answers last."""
        tokens: list[Any] = []
        yield from tokenised(self._encoder, [text for request in batch for text in request.texts], tokens)
        asked = [(request.pooling, request.skip) for request in batch for _ in request.texts]
        vectors: list[Tensor] = [torch.empty(0)] * len(tokens)  # each [H], or [T, H] where no pooling is asked
        runs = self._encoder.hidden(tokens)
        for _ in in_inference(runs, lambda parts: _collect(parts, asked, vectors)):
            yield None
        mine = zip(batch, shares(len(request.texts) for request in batch), strict=True)
        yield [self._too_long(request, tokens[part]) or _answer(request, vectors[part]) for request, part in mine]

    def _too_long(self, request: Request, tokens: Sequence[Any]) -> BadInput | None:
        if request.truncate:
            return None
        limit = self._encoder.limit
        for index, each in enumerate(tokens):
            if len(each) > limit:
                return BadInput(
                    f"inputs[{index}] is {len(each)} tokens, the model reads {limit}; cut it or let truncate be true"
                )
        return None


def _collect(parts: Iterable[bert.Part], asked: Sequence[tuple[Pooling, int]], vectors: list[Tensor]) -> None:
    """Put what each text of ``parts`` asked for into ``vectors``, on the CPU in float32."""
    for indices, hidden in parts:
        pooled = {way: _pool(hidden[:, way[1] :], way[0]).float().cpu() for way in {asked[index] for index in indices}}
        for row, index in enumerate(indices):
            vectors[index] = pooled[asked[index]][row]


def _pool(hidden: Tensor, way: Pooling) -> Tensor:
    """Return [n, H] of ``hidden`` [n, T, H]; [n, T, H] for "none"."""
    if way == "mean":
        return hidden.mean(1)
    if way == "cls":
        return hidden[:, 0]
    return hidden.amax(1) if way == "max" else hidden


def _answer(request: Request, vectors: list[Tensor]) -> Any:
    if request.pooling == "none":
        rows = [F.normalize(each, dim=-1) if request.normalize else each for each in vectors]
        return rows[0][None].numpy() if request.single else [row[None].numpy() for row in rows]
    stacked = torch.stack(vectors)
    stacked = F.normalize(stacked, dim=-1) if request.normalize else stacked
    return stacked[0].numpy() if request.single else stacked.numpy()
