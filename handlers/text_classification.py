"""Text classification: labels and scores, by BERT natively and by other encoders through transformers.

    {"inputs": "text"}                -> [{"label": "POSITIVE", "score": 0.98}, ...]   best first, five at most
    {"inputs": ["a", "b"]}            -> a list of such lists
    {"inputs": {"text": "a", "text_pair": "b"}}  two texts that are judged together; also inside a list

``parameters``: top_k (5; null = all), function_to_apply (softmax | sigmoid | none; by default what config.json's
problem_type means, as in transformers' pipeline).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from container.errors import BadInput
from container.handler import Context, Handler
from container.nets import bert
from container.nets.config import fields, labels
from container.payload import Payload
from handlers import body
from handlers.encoders import BertEncoder, Text, TransformersEncoder, estimate, is_native, open_encoder, tokenised
from handlers.scores import Function, Parameters, ranked, usual
from handlers.steps import in_inference, outcome, shares


class Request(NamedTuple):
    """One decoded request. single: ``inputs`` was one text, not a list."""

    texts: list[Text]
    single: bool
    top_k: int | None
    function: Function


class TextClassification(Handler):
    """Texts to the classes that the model knows."""

    task = "text_classification"
    example = Payload(b'{"inputs": ["The crossing was calm and the crew kind.", "Late again, and nobody said why."]}')

    _encoder: BertEncoder | TransformersEncoder
    _labels: list[str]
    _function: Function

    @classmethod
    def native(cls, model_dir: Path) -> bool:
        """Return whether the model is served by our function: without transformers, re-entrant, shareable."""
        return is_native(model_dir)

    def load(self, model_dir: Path, context: Context) -> None:
        """See Handler. Raises BadArchive."""
        found = fields(model_dir)
        self._labels = labels(found)
        self._function = usual(found, len(self._labels))
        self._encoder = open_encoder(model_dir, context, "AutoModelForSequenceClassification", len(self._labels))
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
        wanted = body.parameters(given, Parameters)
        single = isinstance(inputs, (str, dict))
        if not single and not isinstance(inputs, list):
            raise BadInput(
                f"inputs is {body.shown(inputs)}; expected a text, an object with text and text_pair, or a list"
            )
        if not single:
            body.bounded(inputs, body.MAX_TEXTS)
        texts = [_text("inputs", inputs)] if single else [_text(f"inputs[{i}]", each) for i, each in enumerate(inputs)]
        return Request(texts, single, wanted.top_k, wanted.function_to_apply or self._function)

    def size(self, value: Request) -> int:
        """Return about how many tokens the texts have together."""
        return estimate(value.texts, self._encoder.limit)

    def predict(self, batch: list[Request]) -> list[Any]:
        """Return a list of {"label", "score"} a text; for a request that was a list, a list of these."""
        return outcome(self.steps(batch))

    def steps(self, batch: list[Request]) -> Iterator[list[Any] | None]:
        """Yield None between runs of the network and the answers last."""
        tokens: list[Any] = []
        yield from tokenised(self._encoder, [text for request in batch for text in request.texts], tokens)
        logits = torch.empty(len(tokens), len(self._labels))
        for _ in in_inference(self._runs(tokens), lambda run: logits.index_copy_(0, *run)):
            yield None
        mine = zip(batch, shares(len(request.texts) for request in batch), strict=True)
        yield [self._too_long(request, tokens[part]) or self._answer(request, logits[part]) for request, part in mine]

    def _runs(self, tokens: Sequence[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (indices [n] into ``tokens``, their logits [n, classes] float32), on the CPU."""
        encoder = self._encoder
        if isinstance(encoder, TransformersEncoder):
            for order, answer, _ in encoder.run(tokens):
                yield torch.tensor(order), answer["logits"].float().cpu()
            return
        for parts in encoder.hidden(tokens):
            order = [index for part in parts for index in part.indices]
            first = torch.cat([part.hidden[:, 0] for part in parts])
            yield torch.tensor(order), bert.classify(encoder.weights, encoder.layout, first).float().cpu()

    def _too_long(self, request: Request, tokens: Sequence[Any]) -> BadInput | None:
        """A single text is cut at its end; where to cut a pair is not ours to choose."""
        limit = self._encoder.limit
        for text, each in zip(request.texts, tokens, strict=True):
            if isinstance(text, tuple) and len(each) > limit:
                return BadInput(f"text and text_pair are {len(each)} tokens together, the model reads {limit}")
        return None

    def _answer(self, request: Request, logits: Tensor) -> Any:
        rows = ranked(logits, self._labels, request.top_k, request.function)
        return rows[0] if request.single else rows


def _text(where: str, value: Any) -> Text:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        pair = value.get("text_pair")
        if pair is None:
            return str(value["text"])
        if isinstance(pair, str):
            return value["text"], pair
    raise BadInput(f"{where} is {body.shown(value)}; expected a text, or an object with the texts text and text_pair")
