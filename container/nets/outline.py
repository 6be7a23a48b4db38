"""What a tokenizer.json does to a text besides looking words up: whether that is bounded, read without building it.

Expressions that backtrack, and replacements that grow a text a millionfold, are programs of the archive's author. They
would hang or end the process they run in, so that they run where authors' code does, through transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from container.nets.config import Unsupported

#: Parts whose time and output grow with the text alone.
_PLAIN = frozenset(
    {
        *("Sequence", "BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "Strip", "StripAccents"),
        *("Precompiled", "BertPreTokenizer", "ByteLevel", "Metaspace", "Whitespace", "WhitespaceSplit", "Punctuation"),
        *("Digits", "UnicodeScripts", "WordPiece", "BPE", "WordLevel", "Unigram", "BPEDecoder", "Fuse", "ByteFallback"),
        *("TemplateProcessing", "BertProcessing", "RobertaProcessing"),
    }
)
#: Expressions of well-known tokenizers (XLM-RoBERTa's), which step through a text once.
_KNOWN = frozenset({" {2,}"})
#: Characters of a word that WordPiece takes apart in steps of their square; BERT's is 100.
_MOST_IN_A_WORD = 1000


class _Model(msgspec.Struct):
    type: Any = None
    max_input_chars_per_word: Any = None


class _Outline(msgspec.Struct):
    """All of the file but its words, which are passed over."""

    model: _Model = msgspec.field(default_factory=_Model)
    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None
    decoder: Any = None


def check(model_dir: Path) -> None:
    """Raise Unsupported if tokenizer.json in ``model_dir`` asks for what is not bounded; a broken one is not judged."""
    try:
        found = msgspec.json.decode((model_dir / "tokenizer.json").read_bytes(), type=_Outline)
    except (OSError, ValueError, RecursionError):  # whoever loads it says what is wrong with it
        return
    for each in (found.normalizer, found.pre_tokenizer, found.post_processor, found.decoder):
        for kind in _strange(each):
            raise Unsupported(f"a tokenizer with a {kind}")
    longest = found.model.max_input_chars_per_word
    if found.model.type not in (None, *_PLAIN) or (isinstance(longest, int) and longest > _MOST_IN_A_WORD):
        raise Unsupported(f"a {found.model.type} of words of {longest} characters")


def _strange(part: Any) -> Iterator[Any]:
    """Yield the types of what is not bounded in one part of the file, those inside a sequence, too."""
    if isinstance(part, dict):
        if not _harmless(part):
            yield part.get("type") if isinstance(part.get("type"), str) else "nameless part"
        for inner in (part.get(name) for name in ("normalizers", "pretokenizers", "processors", "decoders")):
            for each in inner if isinstance(inner, list) else ():
                yield from _strange(each)


def _harmless(part: dict[str, Any]) -> bool:
    kind, pattern = part.get("type"), part.get("pattern")
    if not isinstance(kind, str) or kind in _PLAIN:
        return isinstance(kind, str)
    if kind not in ("Replace", "Split") or not isinstance(pattern, dict):
        return False
    text, content = pattern.get("String", ""), part.get("content", "")
    if not isinstance(text, str) or not isinstance(content, str):
        return False
    return pattern.get("Regex") in _KNOWN or 0 < len(text) >= len(content)
