"""Text generation: a prompt continued, by GPT-2 natively and by other decoders through transformers.

    {"inputs": "Once upon", "parameters": {"max_new_tokens": 20}}  -> [{"generated_text": "Once upon a time ..."}]
    {"inputs": ["a", "b"]}                                         -> a list of such lists

Greedy unless ``do_sample``. A text ends before a ``stop`` text, before the model's end token, or after
``max_new_tokens`` (20). Nothing is cut: a prompt without room for the tokens asked for is refused with the arithmetic.
With ``"stream": true``, or where Accept likes text/event-stream best, one text is told while it grows (``stream.py``).
Generation runs in steps of one token for all its prompts, between which other models may have the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from container.errors import BadInput, LargerThanTier
from container.handler import Claim, Context, Handler, Parts, Ready
from container.nets import checkpoint, gpt2, outline
from container.nets.config import Unsupported, fields
from container.payload import Payload
from handlers import body, stream
from handlers.generators import Gpt2Generator, TransformersGenerator
from handlers.sampling import Row, Taste
from handlers.steps import outcome, slices

Meta = msgspec.Meta
Positive = Annotated[int, Meta(ge=1)]

#: What transformers or text-generation-inference know and this task does not do.
_ABSENT = (
    *("num_return_sequences", "num_beams", "num_beam_groups", "best_of", "length_penalty", "early_stopping"),
    *("penalty_alpha", "typical_p", "min_p", "no_repeat_ngram_size", "frequency_penalty", "bad_words_ids"),
    *("watermark", "details", "decoder_input_details", "return_tensors", "truncate", "truncation"),
    *("min_length", "min_new_tokens", "max_time"),
)


#: Prompts in one request; each takes its share of one cache or waits for it.
_MAX_PROMPTS = 256
#: Texts that end a generation, and the characters of one: they are looked for after every token of every prompt.
_MAX_STOPS = 64
_MAX_STOP_CHARACTERS = 1024
#: Far more than any token has (GPT-2's longest is 128 spaces).
_CHARACTERS_PER_TOKEN = 1024
_SLICE_CHARACTERS = 1 << 18


class Parameters(msgspec.Struct, frozen=True):
    """What a request may ask, with transformers' names and defaults."""

    max_new_tokens: Positive | None = None
    max_length: Positive | None = None
    do_sample: bool = False
    temperature: Annotated[float, Meta(gt=0, le=100)] = 1.0
    top_k: Annotated[int, Meta(ge=0)] | None = 50
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = 1.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = 1.0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: str | list[str] = []
    stop_sequences: str | list[str] = []
    return_full_text: bool = True
    stream: bool | None = None


class Request(NamedTuple):
    """One decoded request. single: ``inputs`` was one text. prompts: their tokens. room: how many each may add.

    form: how the text is told while it grows, "" for an answer in one.
    """

    texts: list[str]
    single: bool
    prompts: list[list[int]]
    room: list[int]
    taste: Taste
    seed: int | None
    stops: list[str]
    full: bool
    form: str = ""


class TextGeneration(Handler):
    """Prompts to texts."""

    task = "text_generation"
    example = Payload(b'{"inputs": "The ship lies at its berth and", "parameters": {"max_new_tokens": 8}}')

    _generator: Gpt2Generator | TransformersGenerator
    _device_room: Callable[[], int] | None = None

    @classmethod
    def native(cls, model_dir: Path) -> bool:
        """Return whether the model is served by our function: without transformers, re-entrant, shareable."""
        try:
            _ours(model_dir)
        except Unsupported:
            return False
        return True

    def load(self, model_dir: Path, context: Context) -> None:
        """See Handler. Raises BadArchive."""
        self._device_room = context.room
        try:
            config = _ours(model_dir)
            weights = (context.open_weights or checkpoint.read)(model_dir)
            self._generator = Gpt2Generator(model_dir, weights, gpt2.layout_of(config, weights))
            self.reentrant = True
        except Unsupported:
            self._generator = TransformersGenerator(model_dir)
            self.reentrant = False

    def rest(self) -> bool:
        """See Handler."""
        return isinstance(self._generator, Gpt2Generator) and self._generator.rest()

    def wake(self) -> bool:
        """See Handler."""
        return isinstance(self._generator, Gpt2Generator) and self._generator.wake()

    def decode(self, payload: Payload) -> Request:
        """Return the Request in ``payload``."""
        inputs, given = body.read(payload)
        texts, single = body.texts(inputs, _MAX_PROMPTS)
        for index, text in enumerate(texts):
            if len(text) > self._generator.limit * _CHARACTERS_PER_TOKEN:  # not worth tokenising to count
                raise BadInput(
                    f"inputs[{index}] is {len(text)} characters; the model has {self._generator.limit} positions"
                )
        for name in ("num_return_sequences", "num_beams", "best_of"):  # 1 asks for nothing that is not done
            if given.get(name) == 1:
                del given[name]
        wanted = body.parameters(given, Parameters, _ABSENT)
        given_stops = (wanted.stop, wanted.stop_sequences)
        stops = [stop for each in given_stops for stop in ([each] if isinstance(each, str) else each)]
        if len(stops) > _MAX_STOPS or max(map(len, stops), default=0) > _MAX_STOP_CHARACTERS:
            raise BadInput(
                f"parameter stop holds {len(stops)} texts, the longest of {max(map(len, stops))} characters; at most "
                f"{_MAX_STOPS} of {_MAX_STOP_CHARACTERS} characters are looked for after each token"
            )
        if "" in stops:
            raise BadInput("parameter stop holds an empty text, which would stop everything at once")
        prompts: list[list[int]] = []
        room: list[int] = []
        for part in slices([len(text) for text in texts], _SLICE_CHARACTERS):  # what is refused, at its first text
            for prompt in self._generator.tokenise(texts[part]):
                where = f"inputs[{len(prompts)}]"
                prompts.append(prompt)
                room.append(_room(wanted, where, len(prompt), self._generator.limit))
                self._check_cache(where, len(prompt), room[-1])
        taste = Taste(
            wanted.do_sample,
            wanted.temperature,
            wanted.top_k or 0,
            1.0 if wanted.top_p is None else wanted.top_p,
            1.0 if wanted.repetition_penalty is None else wanted.repetition_penalty,
        )
        form = stream.form(wanted.stream, payload.accept)
        if form and not single:
            raise BadInput("only one text can be streamed; send inputs as a text, or leave stream out")
        return Request(texts, single, prompts, room, taste, wanted.seed, stops, wanted.return_full_text, form)

    def _check_cache(self, where: str, prompt: int, more: int) -> None:
        """Raise LargerThanTier if the keys and values of one text can never lie on the device beside the weights."""
        a_token = self._generator.token_bytes
        if self._device_room is None or not a_token:
            return
        room = self._device_room()
        if (prompt + more) * a_token > room:
            raise LargerThanTier(
                f"{where} is {prompt} tokens and {more} more are asked for: their keys and values take "
                f"{(prompt + more) * a_token} bytes ({a_token} a token), and the model's weights leave never more than "
                f"{room}; ask for at most {max(0, room // a_token - prompt)} (max_new_tokens), or raise "
                "BERTH_MEMORY_LIMIT"
            )

    def size(self, value: Request) -> int:
        """Return the tokens that the generations may come to, prompts counted: what their caches must hold."""
        return sum(map(len, value.prompts)) + sum(value.room)

    def predict(self, batch: list[Request]) -> list[Any]:
        """Return [{"generated_text": ...}] a request; for a request that was a list, a list of these."""
        return outcome(self.steps(batch))

    def steps(self, batch: list[Request]) -> Iterator[list[Any] | Parts | Ready | Claim | None]:
        """Yield the cache's Claim, None between tokens, what is ready when it is, and the answers last.

        Holds no thread's state between two steps.
        """
        rows = [
            [
                Row(prompt, room, request.taste, request.seed, request.stops)
                for prompt, room in zip(request.prompts, request.room, strict=True)
            ]
            for request in batch
        ]
        text = self._generator.text
        told = {i: stream.Telling(each.form, text, each.stops) for i, each in enumerate(batch) if each.form}
        waiting = set(range(len(batch)))
        claimed = Claim(0, 0)
        for claim in self._generator.run([row for each in rows for row in each]):
            if claim is not None:
                claimed = claim
                yield claim
                continue
            if claimed.granted < claimed.most:
                claimed.waiting = {i for i in waiting if not any(row.begun for row in rows[i])}
            ended = {i for i in waiting if all(row.ended for row in rows[i])}
            waiting -= ended
            pieces = {i: telling.piece(rows[i][0].chosen) for i, telling in told.items() if i in waiting}
            if new := {i: piece for i, piece in pieces.items() if piece is not None}:
                yield Parts(new)
            if ended and waiting:
                yield Ready({i: self._answer(batch[i], rows[i], told.get(i)) for i in ended})
            elif not new:
                yield None
        yield [self._answer(request, rows[i], told.get(i)) for i, request in enumerate(batch)]

    def _answer(self, request: Request, rows: list[Row], told: stream.Telling | None) -> Any:
        answers = []
        for text, row in zip(request.texts, rows, strict=True):
            added = self._generator.text(row.chosen)
            cuts = [at for stop in row.stops if (at := added.find(stop)) >= 0]
            added = added[: min(cuts)] if cuts else added
            whole = text + added if request.full else added
            if told is not None:
                return told.last(row.chosen, added, whole)
            answers.append([{"generated_text": whole}])
        return answers[0] if request.single else answers


def _ours(model_dir: Path) -> gpt2.Config:
    """Return what our GPT-2 is to compute. Raises Unsupported if it, or the raw tokenizer, is not to; BadArchive."""
    config = gpt2.read(fields(model_dir))
    outline.check(model_dir)
    return config


def _room(wanted: Parameters, where: str, prompt: int, limit: int) -> int:
    """How many tokens may be added to a prompt of ``prompt`` tokens. Raises BadInput when they do not fit."""
    if prompt == 0:
        raise BadInput(f"{where} is empty and the model has no token to begin with; give it a first word")
    if wanted.max_new_tokens is None and wanted.max_length is not None:
        if wanted.max_length <= prompt:
            raise BadInput(f"parameter max_length is {wanted.max_length}, but {where} alone is {prompt} tokens")
        room = wanted.max_length - prompt
    else:
        room = wanted.max_new_tokens or 20
    if prompt + room > limit:
        raise BadInput(
            f"{where} is {prompt} tokens and {room} more are asked for: {prompt + room} together, the model has "
            f"{limit} positions; shorten the text or ask for at most {max(0, limit - prompt)} (max_new_tokens)"
        )
    return room
