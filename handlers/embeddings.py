"""Sentence embeddings: one vector a text, by BERT natively and by other encoders through transformers.

    {"inputs": "text"}                    -> [0.1, ...]                 one text, one vector
    {"inputs": ["a", "b"]}                -> [[0.1, ...], [0.2, ...]]
    {"inputs": "text", "parameters": {"pooling": "none"}} -> [[[...], ...]]   a vector a token, as feature-extraction

Pooling and normalising are what the folder says in the layout of sentence-transformers (modules.json), else the mean
of the tokens and no normalising; ``pooling`` and ``normalize`` of a request override both. Texts over the model's limit
are cut, or refused with ``"truncate": false``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from container.errors import BadArchive, BadInput
from container.handler import Context, Handler
from container.nets import bert
from container.nets.config import fields
from container.payload import Payload
from handlers import body
from handlers.encoders import BertEncoder, Encoder, estimate, is_native, open_encoder
from handlers.steps import in_inference, outcome, shares

Pooling = Literal["mean", "cls", "max", "none"]


class Parameters(msgspec.Struct, frozen=True):
    """What a request may ask; None = as the model's folder says."""

    pooling: Pooling | None = None
    normalize: bool | None = None
    truncate: bool = True


class Request(NamedTuple):
    """One decoded request. single: ``inputs`` was one text, not a list."""

    texts: list[str]
    single: bool
    pooling: Pooling
    normalize: bool
    truncate: bool


class Recipe(NamedTuple):
    """What a folder says of making a vector: where the network lies in it, how to pool, whether to normalise."""

    network: Path
    pooling: Pooling = "mean"
    normalize: bool = False


class _Module(msgspec.Struct):
    type: str
    path: str = ""


def recipe(model_dir: Path) -> Recipe:
    """Return the Recipe in modules.json, the default without one. Raises BadArchive for a module not done here."""
    found = Recipe(model_dir)
    try:
        modules = msgspec.json.decode((model_dir / "modules.json").read_bytes(), type=list[_Module])
    except FileNotFoundError:
        return found
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadArchive(f"modules.json cannot be read: {error}") from error
    for module in modules:
        kind = module.type.rpartition(".")[2]
        if Path(module.path).is_absolute() or ".." in Path(module.path).parts:
            raise BadArchive(f"modules.json names {module.path!r}, which is not inside the model's folder")
        if kind == "Transformer":
            found = found._replace(network=model_dir / module.path)
        elif kind == "Pooling":
            found = found._replace(pooling=_pooling(fields(model_dir / module.path)))
        elif kind == "Normalize":
            found = found._replace(normalize=True)
        else:
            raise BadArchive(f"modules.json has a module {module.type}; done here: Transformer, Pooling, Normalize")
    return found


def _pooling(found: dict[str, Any]) -> Pooling:
    """The one way of pooling that 1_Pooling/config.json switches on."""
    ways: dict[str, Pooling] = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}
    prefix = "pooling_mode_"
    chosen = [name.removeprefix(prefix) for name in found if name.startswith(prefix) and found[name] is True]
    if isinstance(found.get("pooling_mode"), str):
        chosen = [found["pooling_mode"] if found["pooling_mode"] in ways else f"{found['pooling_mode']}_tokens"]
        chosen = ["cls_token" if way == "cls_tokens" else way for way in chosen]
    if len(chosen) != 1 or chosen[0] not in ways:
        raise BadArchive(
            f"the Pooling module pools by {' and '.join(chosen) or 'nothing'}; done here: {', '.join(ways)}"
        )
    return ways[chosen[0]]


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

    def decode(self, payload: Payload) -> Request:
        """Return the Request in ``payload``."""
        inputs, given = body.read(payload)
        texts, single = body.texts(inputs)
        wanted = body.parameters(given, Parameters)
        normalize = self._recipe.normalize if wanted.normalize is None else wanted.normalize
        return Request(texts, single, wanted.pooling or self._recipe.pooling, normalize, wanted.truncate)

    def size(self, value: Request) -> int:
        """Return about how many tokens the texts have together."""
        return estimate(value.texts, self._encoder.limit)

    def predict(self, batch: list[Request]) -> list[Any]:
        """Return a vector [H], rows [n, H] or (pooling none) a list of [1, T, H] a request, float32."""
        return outcome(self.steps(batch))

    def steps(self, batch: list[Request]) -> Iterator[list[Any] | None]:
        """Yield None between runs of the network and the answers last."""
        tokens = self._encoder.tokenise([text for request in batch for text in request.texts])
        asked = [request.pooling for request in batch for _ in request.texts]
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


def _collect(parts: Iterable[bert.Part], asked: Sequence[Pooling], vectors: list[Tensor]) -> None:
    """Put what each text of ``parts`` asked for into ``vectors``, on the CPU in float32."""
    for indices, hidden in parts:
        pooled = {way: _pool(hidden, way).float().cpu() for way in {asked[index] for index in indices}}
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
