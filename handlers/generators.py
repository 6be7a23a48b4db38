"""Rows of tokens continued: by our GPT-2, all rows at once and a token a step, or by transformers one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from container.handler import Claim, Weights
from container.nets import gpt2, packing, sequences, tokenizer
from container.nets.config import fields
from handlers.pretrained import pretrained
from handlers.sampling import Row, choose
from handlers.vocabulary import Vocabulary, tokenizer_of, vocabulary_of

#: Tokens of prompts in one run; longer queues of prompts give way in between.
_PREFILL_TOKENS = 1024
#: Most tokens in one cache; more rows than fit wait for the first to end (GPT-2 small: 74 KB a token, 2.4 GB).
_CACHE_TOKENS = 32_768


def end_tokens(model_dir: Path) -> frozenset[int]:
    """Return the ids that end a text: generation_config.json's, else config.json's, else GPT-2's 50256."""
    for name in ("generation_config.json", "config.json"):
        found = fields(model_dir, name)
        if "eos_token_id" in found:
            value = found["eos_token_id"]
            return frozenset(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset({50256})


class Gpt2Generator:
    """Our GPT-2 and a shared raw tokenizer; keeps nothing between calls."""

    def __init__(self, model_dir: Path, weights: Weights, layout: gpt2.Layout) -> None:
        self.weights = weights
        self.layout = layout
        self.limit = layout.config.n_positions
        #: Bytes of cache that a token takes, in the prompt or behind it.
        self.token_bytes = gpt2.KvCache.bytes(layout.config, 1, 1, weights[layout.words].element_size())
        self._words = tokenizer.Words(model_dir)
        words = self._words.tokenizer
        sizes = words.get_vocab_size(with_added_tokens=False), words.get_vocab_size()
        self._vocabulary = Vocabulary(layout.config.vocab_size, *sizes)
        self._ends = end_tokens(model_dir)
        begin = fields(model_dir).get("bos_token_id", 50256)
        self._begin = [begin] if isinstance(begin, int) and begin < layout.config.vocab_size else []

    def tokenise(self, texts: list[str]) -> list[list[int]]:
        """Return the tokens of each text; an empty one is the token that begins texts, if the model has one."""
        found = [each.ids or self._begin for each in self._words.tokenizer.encode_batch_fast(texts)]
        self._vocabulary.check(found)
        return found

    def text(self, tokens: list[int]) -> str:
        """Return ``tokens`` as text, special ones left out."""
        return str(self._words.tokenizer.decode(tokens))

    def rest(self) -> bool:
        """See Handler."""
        self._words.rest()
        return True

    def wake(self) -> bool:
        """See Handler."""
        return self._words.wake()

    def run(self, rows: list[Row]) -> Iterator[Claim | None]:
        """Continue ``rows`` to their ends, as many at a time as the granted cache holds; yield between tokens."""
        waiting = sorted(rows, key=lambda row: len(row.prompt) + row.room)
        if not waiting:
            return
        longest = len(waiting[-1].prompt) + waiting[-1].room
        most = max(longest, min(_CACHE_TOKENS, longest * len(rows)))
        claim = Claim(longest * self.token_bytes, most * self.token_bytes)
        yield claim
        while waiting:
            tokens = len(waiting[-1].prompt) + waiting[-1].room
            count = max(1, claim.granted // self.token_bytes // tokens)
            yield from self._together(waiting[-count:], tokens)
            del waiting[-count:]

    def _together(self, rows: list[Row], tokens: int) -> Iterator[None]:
        """Continue ``rows`` in one cache with room for ``tokens`` each."""
        words = self.weights[self.layout.words]
        prompts = [row.prompt for row in rows]
        for row in rows:
            row.begun = True
        live: list[Row] = []
        # Inference mode is the thread's, and the next step may come on another thread: never across a yield.
        with torch.inference_mode():
            cache = gpt2.KvCache(self.layout.config, len(rows), tokens, like=words)
        for pack in packing.pack([len(prompt) for prompt in prompts], _PREFILL_TOKENS):
            with torch.inference_mode():
                ids = sequences.end_to_end(prompts, pack).to(words.device)
                places = sequences.positions(pack).to(words.device)
                logits = gpt2.prefill(self.weights, self.layout, ids, places, pack.groups, cache)
                started = [rows[index] for index in pack.order]
                self._take(started, choose(logits, started))
                live += started
            yield None
        while True:
            with torch.inference_mode():
                if not self._settle(live, cache):
                    return
                last = torch.tensor([row.chosen[-1] for row in live], device=words.device)
                self._take(live, choose(gpt2.step(self.weights, self.layout, last, cache), live))
            yield None

    def _take(self, rows: list[Row], tokens: list[int]) -> None:
        for row, token in zip(rows, tokens, strict=True):
            if token in self._ends:
                row.ended = True
                continue
            row.chosen.append(token)
            row.ended = len(row.chosen) >= row.room or self._stopped(row)

    def _stopped(self, row: Row) -> bool:
        """Whether a stop text has just come about; it lies in the last tokens, each of which is a byte at least."""
        if not row.stops:
            return False
        window = max(len(stop.encode()) for stop in row.stops) + 4
        tail = self.text(row.chosen[-window:])
        return any(stop in tail for stop in row.stops)

    def _settle(self, live: list[Row], cache: gpt2.KvCache) -> bool:
        """Drop what has ended, from the end on so that the rows that move up have been looked at."""
        for index in reversed(range(len(live))):
            if live[index].ended:
                cache.drop(index)
                last = live.pop()
                if index < len(live):
                    live[index] = last
        return bool(live)


class TransformersGenerator:
    """A causal model of transformers, for the families without a function of ours. One call at a time."""

    def __init__(self, model_dir: Path) -> None:
        self.model = pretrained("AutoModelForCausalLM", model_dir)
        self._tokenizer = tokenizer_of(model_dir)
        self._vocabulary = vocabulary_of(self.model, self._tokenizer)
        self.limit = int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 30)
        #: Its cache is transformers' own and not counted.
        self.token_bytes = 0

    def tokenise(self, texts: list[str]) -> list[list[int]]:
        """Return the tokens of each text."""
        begin = self._tokenizer.bos_token_id
        found = [self._tokenizer(text)["input_ids"] or ([begin] if begin is not None else []) for text in texts]
        self._vocabulary.check(found)
        return found

    def text(self, tokens: list[int]) -> str:
        """Return ``tokens`` as text, special ones left out."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def run(self, rows: list[Row]) -> Iterator[None]:
        """Continue ``rows`` one after the other, yielding between them."""
        for row in rows:
            with torch.inference_mode(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(row.seed) if row.seed is not None else torch.seed()
                out = self.model.generate(torch.tensor([row.prompt]), **self._arguments(row))
            row.chosen = out[0, len(row.prompt) :].tolist()
            row.ended = True
            yield None

    def _arguments(self, row: Row) -> dict[str, Any]:
        pad = self._tokenizer.pad_token_id
        wanted: dict[str, Any] = {
            "attention_mask": torch.ones(1, len(row.prompt), dtype=torch.int64),
            "max_new_tokens": row.room,
            "do_sample": row.taste.do_sample,
            "repetition_penalty": row.taste.repetition_penalty,
            "pad_token_id": self._tokenizer.eos_token_id if pad is None else pad,
        }
        if row.taste.do_sample:
            wanted |= {"temperature": row.taste.temperature, "top_k": row.taste.top_k, "top_p": row.taste.top_p}
        if row.stops:
            wanted |= {"stop_strings": list(row.stops), "tokenizer": self._tokenizer}
        return wanted
