"""Tokenizers as raw ``tokenizers`` objects, one for each content however many models use it.

Two hundred copies of one model have one tokenizer (10 MB for BERT's vocabulary) and only the first waits for it. Shared
objects are never configured: truncation and padding are the callers' (``cut``), since both are settings of the object
that another model's thread would see.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import xxhash
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from container.errors import BadArchive
from container.nets import stock
from container.nets.config import Unsupported, fields
from container.nets.stock import Content


class Words:
    """A model's hold on its tokenizer; at rest it holds only what it was, and the tokenizer may go.

    Raises what ``load`` raises.
    """

    __slots__ = ("_content", "_model_dir", "_scope", "_tokenizer")

    def __init__(self, model_dir: Path) -> None:
        self._model_dir, self._scope = model_dir, stock.scope()
        made = _made_of(model_dir, self._scope)
        self._content = made.content
        self._tokenizer: Tokenizer | None = stock.STOCK.take(made.content, made.build)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; do not change it."""
        assert self._tokenizer is not None, "it is at rest"
        return self._tokenizer

    def rest(self) -> None:
        """Let the tokenizer go."""
        self._tokenizer = None

    def wake(self) -> bool:
        """Hold the same tokenizer again; False if the files hold another by now."""
        found = stock.STOCK.find(self._content)
        if found is None:
            made = _made_of(self._model_dir, self._scope)
            if made.content != self._content:
                return False
            found = stock.STOCK.take(made.content, made.build)
        self._tokenizer = found
        return True


def load(model_dir: Path) -> Tokenizer:
    """Return the tokenizer of the model in ``model_dir``, without truncation and padding; do not change it.

    From tokenizer.json, else BERT's vocab.txt, else GPT-2's vocab.json and merges.txt.
    Raises BadArchive when there is none or it is broken, Unsupported when its tokenizer_config.json asks for another.
    """
    made = _made_of(model_dir, stock.scope())
    return stock.STOCK.take(made.content, made.build)


def content_of(model_dir: Path, scope: str) -> Content:
    """Return what ``load`` takes for a model of ``scope``, without building it. Raises BadArchive if there is none."""
    return _made_of(model_dir, scope).content


def cut(ids: list[int], limit: int, tail: int) -> list[int]:
    """Return ``ids`` shortened to ``limit`` from the right, the last ``tail`` (BERT's [SEP]) kept."""
    return ids if len(ids) <= limit else [*ids[: limit - tail], *ids[len(ids) - tail :]]


class _Kind(NamedTuple):
    """One way to keep a tokenizer. size: bytes of memory for each of its files (measured: 17, 40 and 3 to 20)."""

    names: tuple[str, ...]
    build: Callable[..., Tokenizer]
    size: int


class _MadeOf(NamedTuple):
    kind: _Kind
    files: list[bytes]
    options: dict[str, Any]
    content: Content

    def build(self) -> Tokenizer:
        """Build it as no model configures it."""
        built = self.kind.build(*self.files, self.options)
        built.no_truncation()
        built.no_padding()
        return built


def _made_of(model_dir: Path, scope: str) -> _MadeOf:
    """Read what the tokenizer in ``model_dir`` is made of. Raises BadArchive if there is none."""
    kind = next((kind for kind in _KINDS if all((model_dir / name).is_file() for name in kind.names)), None)
    if kind is None:
        wanted = " or ".join(" and ".join(kind.names) for kind in _KINDS)
        raise BadArchive(f"no tokenizer in the model's folder; it needs {wanted}")
    files = [(model_dir / name).read_bytes() for name in kind.names]
    options: dict[str, Any] = {}
    if kind.build is not _from_json:
        options = fields(model_dir, "tokenizer_config.json") | {_ADDED: fields(model_dir, f"{_ADDED}.json")}
    choice = msgspec.json.encode({key: options.get(key) for key in _CHOICES}, order="sorted")
    digest = xxhash.xxh3_128()
    for part in (scope.encode(), *files, choice):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return _MadeOf(kind, files, options, Content(f"tokenizer:{digest.hexdigest()}", kind.size * sum(map(len, files))))


#: Where tokens beside a vocabulary without tokenizer.json are kept, and the option that holds them here.
_ADDED = "added_tokens"
#: What of tokenizer_config.json the vocabularies without tokenizer.json need.
_CHOICES = (
    "do_lower_case",
    "tokenize_chinese_chars",
    "strip_accents",
    "unk_token",
    "cls_token",
    "sep_token",
    "pad_token",
    "mask_token",
    "add_prefix_space",
    "tokenizer_class",
    _ADDED,
)


def _refuse_added(options: dict[str, Any], vocabulary: Collection[str]) -> None:
    """Raise Unsupported for tokens beside the vocabulary: how they match text is their tokenizer's own affair."""
    added = sorted(options.get(_ADDED, {}).keys() - vocabulary)
    if added:
        raise Unsupported(f"{_ADDED}.json with {added[0]!r}")


def _from_json(raw: bytes, options: dict[str, Any]) -> Tokenizer:
    try:
        return Tokenizer.from_buffer(raw)
    except ValueError as error:
        raise BadArchive(f"tokenizer.json cannot be read: {error}") from error


def _token(options: dict[str, Any], name: str, usual: str) -> str:
    """A special token's text; transformers writes a string or an object with "content"."""
    value = options.get(name) or usual
    return str(value.get("content", usual)) if isinstance(value, dict) else str(value)


def _word_piece(raw: bytes, options: dict[str, Any]) -> Tokenizer:
    """BERT's: as transformers' BertTokenizer builds it (tokenization_bert.py)."""
    if options.get("tokenizer_class", "BertTokenizer") not in ("BertTokenizer", "BertTokenizerFast"):
        raise Unsupported(f"tokenizer_class {options['tokenizer_class']!r}")
    try:
        lines = raw.decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise BadArchive(f"vocab.txt is not UTF-8: {error.reason} at byte {error.start}") from error
    vocabulary = {line: index for index, line in enumerate(lines)}
    _refuse_added(options, vocabulary.keys())
    special = {
        name: _token(options, f"{name}_token", f"[{name.upper()}]") for name in ("unk", "cls", "sep", "pad", "mask")
    }
    missing = [token for name, token in special.items() if token not in vocabulary and name in ("unk", "cls", "sep")]
    if missing:
        raise BadArchive(f"vocab.txt lacks {', '.join(missing)}")
    made = Tokenizer(WordPiece(vocabulary, unk_token=special["unk"]))
    made.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),
        lowercase=options.get("do_lower_case", True),
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    made.add_special_tokens([token for token in special.values() if token in vocabulary])
    cls, sep = special["cls"], special["sep"]
    made.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    return made


def _byte_pairs(vocabulary: bytes, merges: bytes, options: dict[str, Any]) -> Tokenizer:
    """GPT-2's: as transformers' GPT2Tokenizer builds it (tokenization_gpt2.py)."""
    if options.get("tokenizer_class", "GPT2Tokenizer") not in ("GPT2Tokenizer", "GPT2TokenizerFast"):
        raise Unsupported(f"tokenizer_class {options['tokenizer_class']!r}")
    try:
        words = msgspec.json.decode(vocabulary, type=dict[str, int])
        lines = [line for line in merges.decode().split("\n") if line and not line.startswith("#version")]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadArchive(f"vocab.json and merges.txt cannot be read: {error}") from error
    _refuse_added(options, words.keys())
    pairs = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    stray = next((pair for pair in pairs if not {*pair, "".join(pair)} <= words.keys()), None)
    if stray:
        raise BadArchive(f"merges.txt does not fit vocab.json: {' '.join(stray)!r} is not in it")
    made = Tokenizer(
        BPE(words, pairs, dropout=None, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(options.get("add_prefix_space", False)))
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    end = _token(options, "unk_token", "<|endoftext|>")
    if end in words:
        made.add_special_tokens([end])
    return made


_KINDS = (
    _Kind(("tokenizer.json",), _from_json, 21),
    _Kind(("vocab.txt",), _word_piece, 40),
    _Kind(("vocab.json", "merges.txt"), _byte_pairs, 21),
)
