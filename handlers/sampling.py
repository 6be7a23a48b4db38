"""The next token of one row of text generation: greedy, or drawn as transformers' warpers draw it.

Each row draws from a generator of its own, so that a seed gives the same text whoever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: A temperature that is 0 as a float32 would make 0 / 0 of the likeliest token's score.
_COLDEST = 1e-30


@dataclass(frozen=True, slots=True)
class Taste:
    """How a row chooses. do_sample False = the likeliest token; top_k 0 and top_p 1.0 = all tokens."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0


@dataclass(slots=True)
class Row:
    """One text on its way. prompt: its tokens. room: how many may be added. chosen: those added so far.

    begun: it has a place in a cache. ended: by an end token or a stop text; what ended it is not in ``chosen``.
    """

    prompt: list[int]
    room: int
    taste: Taste
    seed: int | None = None
    stops: Sequence[str] = ()
    chosen: list[int] = field(default_factory=list)
    begun: bool = False
    ended: bool = False
    _generator: torch.Generator | None = None

    def draw(self, probabilities: Tensor) -> int:
        """Return an index into ``probabilities`` [n] (CPU), drawn by this row's generator."""
        if self._generator is None:
            self._generator = torch.Generator()
            if self.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self.seed)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def choose(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """Return the next token of each of ``rows`` from ``logits`` [rows, V]; all greedy ones in one transfer."""
    plain = [not row.taste.do_sample and row.taste.repetition_penalty == 1.0 for row in rows]
    best: list[int] = logits.argmax(-1).tolist() if any(plain) else []
    return [best[index] if plain[index] else _one(logits[index], row) for index, row in enumerate(rows)]


def _one(logits: Tensor, row: Row) -> int:
    taste = row.taste
    scores = logits.float()
    if taste.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*row.prompt, *row.chosen}), device=scores.device)
        said = scores[seen]
        penalised = torch.where(said < 0, said * taste.repetition_penalty, said / taste.repetition_penalty)
        scores = scores.index_copy(0, seen, penalised)
    if not taste.do_sample:
        return int(scores.argmax())
    kept = min(taste.top_k or scores.numel(), scores.numel())
    best, numbers = scores.topk(kept)  # sorted, the likeliest first
    # Its score taken off, or a temperature near 0 would make infinities.
    probabilities = ((best - best[0]) / max(taste.temperature, _COLDEST)).softmax(0).cpu()
    if taste.top_p < 1.0:
        before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities[before < taste.top_p]  # the first is always kept: nothing is before it
    return int(numbers[row.draw(probabilities)])
