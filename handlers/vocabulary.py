"""Whether a tokenizer belongs to its network: a token without a vector ends a process on a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from container.errors import BadArchive, BadInput
from container.nets.config import fields


class Vocabulary:
    """The vectors of a network: ``rows`` of them, for a tokenizer of ``words``, ``added`` ones counted in ``total``.

    Tokens that were added to a tokenizer and not to its network (a padding token, often) do no harm until a text holds
    one. Raises BadArchive when the tokenizer's own words are too many.
    """

    def __init__(self, rows: int, words: int, total: int) -> None:
        if words > rows:
            raise BadArchive(f"the tokenizer has {words} words, the network {rows}: they are of different models")
        self._rows = rows
        self._sound = total <= rows

    def check(self, texts: Iterable[list[int]]) -> None:
        """Raise BadInput if one of the ``texts``, token ids, holds a token that the network has no vector for."""
        if self._sound:
            return
        largest = max((max(ids, default=0) for ids in texts), default=0)
        if largest >= self._rows:
            raise BadInput(
                f"the text holds a token that was added to the tokenizer (number {largest}) and not to the network, "
                f"which has {self._rows}"
            )


def tokenizer_of(model_dir: Path) -> Any:
    """Return the tokenizer that transformers makes of the files in ``model_dir``. Raises BadArchive.

    transformers 5 makes one that knows no words where there are no files; every text would be the same to it.
    """
    from transformers import AutoTokenizer  # seconds to import, and only networks of transformers need it

    missing = "no tokenizer: tokenizer.json, or whatever its save_pretrained writes, is not in the model's folder"
    try:
        found: Any = AutoTokenizer.from_pretrained(str(model_dir), local_files_only=True)
    except OSError as error:
        raise BadArchive(missing) from error
    if set(found.get_vocab()) <= set(found.all_special_tokens):
        raise BadArchive(missing)
    if found.pad_token is None:  # it never had to pad, but texts that come together must; the mask leaves it out
        told = fields(model_dir).get("pad_token_id")
        spare = found.convert_ids_to_tokens(told) if isinstance(told, int) and 0 <= told < len(found) else None
        found.pad_token = spare or found.eos_token or found.unk_token
    return found


def vocabulary_of(model: Any, tokenizer: Any) -> Vocabulary:
    """Return the Vocabulary of a network and a tokenizer of transformers."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    return Vocabulary(rows, 0, len(tokenizer))
