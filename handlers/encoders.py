"""Texts to hidden states: the part that embeddings and text classification share.

Two ways to the same end: our function of BERT with a raw tokenizer, or transformers' classes for any other family.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from container.handler import Context, Weights
from container.nets import bert, checkpoint, outline, packing, tokenizer
from container.nets.config import Unsupported, fields
from handlers.pretrained import pretrained
from handlers.steps import slices
from handlers.vocabulary import Vocabulary, tokenizer_of, vocabulary_of

#: Longer texts are cut before they are tokenised, at this many characters a token that is kept; English has 4 to 5.
_CHARACTERS_PER_TOKEN = 256

#: Characters that are tokenised in one step, about half a second of transformers' tokenizers.
_STEP_CHARACTERS = 1 << 18

_NO_LIMIT = 1 << 30
_RUN_TOKENS = 4096

Text = str | tuple[str, str]


class Encoder(Protocol):
    """Texts in, token counts and hidden states out."""

    limit: int

    def tokenise(self, texts: Sequence[Text]) -> Sequence[Any]:
        """Return each text as this encoder's tokens, uncut; ``len`` of one is its number of tokens."""

    def prompt_tokens(self, prompt: str) -> int:
        """Return how many tokens ``prompt`` has at the beginning of a text, those that begin every text counted."""

    def rest(self) -> bool:
        """See Handler."""

    def wake(self) -> bool:
        """See Handler."""

    def hidden(self, tokens: Sequence[Any]) -> Iterator[list[bert.Part]]:
        """Yield, a run at a time, the last hidden states of ``tokens``, each cut to ``limit``."""


#: Where sentence-transformers keeps how a network is to be used; older versions named it after the family.
_SENTENCE_CONFIGS = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


class Usage(NamedTuple):
    """How texts are given to a network. limit: tokens of a text that it reads. lower: whether texts are lowered."""

    limit: int
    lower: bool


def usage(model_dir: Path, positions: int) -> Usage:
    """Return what the files say: ``max_seq_length`` of sentence-transformers, else the tokenizer's limit; positions."""
    said = next((found for name in _SENTENCE_CONFIGS if (found := fields(model_dir, name))), {})
    longest = said.get("max_seq_length")
    if longest is None:
        longest = fields(model_dir, "tokenizer_config.json").get("model_max_length")
    limit = min(int(longest), positions) if isinstance(longest, (int, float)) and longest >= 1 else positions
    return Usage(limit, said.get("do_lower_case") is True)


def estimate(texts: Sequence[Text], limit: int) -> int:
    """Return about how many tokens ``texts`` have (4 characters a token and two around), for cutting batches."""
    return sum(min(limit, 2 + (len(text) if isinstance(text, str) else sum(map(len, text))) // 4) for text in texts)


def tokenised(encoder: Encoder, texts: Sequence[Text], into: list[Any]) -> Iterator[None]:
    """Put the tokens of ``texts`` ``into`` a list; yield while more are to come: a long list takes half a minute."""
    short = [_short(text, encoder.limit) for text in texts]
    lengths = [len(text) if isinstance(text, str) else sum(map(len, text)) for text in short]
    for part in slices(lengths, _STEP_CHARACTERS):
        if into:
            yield
        into += encoder.tokenise(short[part])


def _short(text: Text, limit: int) -> Text:
    """Return ``text`` without what cannot lie in its first ``limit`` tokens, and would take long to be cut off."""
    end = limit * _CHARACTERS_PER_TOKEN
    return text[:end] if isinstance(text, str) else (text[0][:end], text[1][:end])


def _lowered(text: Text) -> Text:
    return text.lower() if isinstance(text, str) else (text[0].lower(), text[1].lower())


class BertEncoder:
    """Our BERT and a shared raw tokenizer; keeps nothing between calls."""

    def __init__(self, model_dir: Path, weights: Weights, layout: bert.Layout) -> None:
        self.weights = weights
        self.layout = layout
        self.limit, self._lower = usage(model_dir, layout.config.max_position_embeddings)
        self._words = tokenizer.Words(model_dir)
        words = self._words.tokenizer
        sizes = words.get_vocab_size(with_added_tokens=False), words.get_vocab_size()
        self._vocabulary = Vocabulary(layout.config.vocab_size, *sizes)

    def tokenise(self, texts: Sequence[Text]) -> Sequence[Any]:
        """Return the encodings of ``texts`` (objects of ``tokenizers``), which hold ids and types."""
        return self._words.tokenizer.encode_batch_fast([_lowered(text) for text in texts] if self._lower else texts)

    def prompt_tokens(self, prompt: str) -> int:
        """See Encoder."""
        found = self._words.tokenizer.encode(_lowered(prompt) if self._lower else prompt)
        return len(found.ids) - found.special_tokens_mask[-1]

    def rest(self) -> bool:
        """See Handler."""
        self._words.rest()
        return True

    def wake(self) -> bool:
        """See Handler."""
        return self._words.wake()

    def hidden(self, tokens: Sequence[Any]) -> Iterator[list[bert.Part]]:
        """See Encoder."""
        ids = [tokenizer.cut(each.ids, self.limit, tail=1) for each in tokens]
        self._vocabulary.check(ids)
        types = [tokenizer.cut(each.type_ids, self.limit, tail=1) for each in tokens]
        return bert.encode(self.weights, self.layout, ids, types if any(map(any, types)) else None)


class TransformersEncoder:
    """A model and a tokenizer of transformers, for the families without a function of ours. One call at a time."""

    def __init__(self, model_dir: Path, model: Any) -> None:
        self.model = model
        self._tokenizer = tokenizer_of(model_dir)
        self._vocabulary = vocabulary_of(model, self._tokenizer)
        self._tokenizer.padding_side = "right"
        # The tokenizer knows how many of the positions a text may use (RoBERTa: all but two).
        usable = min(self._tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", _NO_LIMIT))
        self.limit, self._lower = usage(model_dir, usable)

    def tokenise(self, texts: Sequence[Text]) -> Sequence[Any]:
        """Return the encodings of ``texts``: mappings from input name to a list."""
        return [
            self._tokenizer(*([text] if isinstance(text, str) else text), truncation=True, max_length=self.limit)
            for text in (map(_lowered, texts) if self._lower else texts)
        ]

    def prompt_tokens(self, prompt: str) -> int:
        """See Encoder."""
        ids = self._tokenizer(_lowered(prompt) if self._lower else prompt)["input_ids"]
        return len(ids) - (ids[-1] in self._tokenizer.all_special_ids)

    def rest(self) -> bool:
        """See Handler: its network is all in memory."""
        return False

    def wake(self) -> bool:
        """See Handler."""
        return False

    def run(self, tokens: Sequence[Any]) -> Iterator[tuple[list[int], dict[str, Any], Tensor]]:
        """Yield (indices into ``tokens``, the model's answer, mask [B, T]) for padded parts of similar length."""
        self._vocabulary.check(each["input_ids"] for each in tokens)
        lengths = [len(each["input_ids"]) for each in tokens]
        for pack in packing.pack(lengths, _RUN_TOKENS):
            inputs = self._tokenizer.pad([tokens[index] for index in pack.order], return_tensors="pt")
            yield pack.order, self.model(**inputs), inputs["attention_mask"]

    def hidden(self, tokens: Sequence[Any]) -> Iterator[list[bert.Part]]:
        """See Encoder."""
        for order, answer, mask in self.run(tokens):
            states = answer["last_hidden_state"]
            lengths = mask.sum(1).tolist()
            yield [bert.Part([index], states[row : row + 1, : lengths[row]]) for row, index in enumerate(order)]


def is_native(folder: Path) -> bool:
    """Return whether our BERT computes the network in ``folder``. Raises BadArchive."""
    try:
        _ours(folder)
    except Unsupported:
        return False
    return True


def _ours(folder: Path) -> bert.Config:
    """Return what our BERT is to compute. Raises Unsupported if it, or the raw tokenizer, is not to; BadArchive."""
    config = bert.read(fields(folder))
    outline.check(folder)
    return config


def open_encoder(folder: Path, context: Context, auto: str, classes: int = 0) -> BertEncoder | TransformersEncoder:
    """Return our BERT over the weights in ``folder``, or the model that transformers' class ``auto`` makes of it.

    classes: outputs of the head, 0 for none. Raises BadArchive.
    """
    try:
        config = _ours(folder)
        weights = (context.open_weights or checkpoint.read)(folder)
        return BertEncoder(folder, weights, bert.layout_of(config, weights, classes))
    except Unsupported:
        return TransformersEncoder(folder, pretrained(auto, folder, spare="" if classes else "pooler."))
