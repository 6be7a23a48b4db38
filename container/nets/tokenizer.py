"""Tokenizers as raw ``tokenizers`` objects, one for each content however many models use it.

Two hundred copies of one model have one tokenizer (10 MB for BERT's vocabulary) and only the first waits for it. Shared
objects are never configured: truncation and padding are the callers' (``cut``), since both are settings of the object
that another model's thread would see.

Building one and dropping one hold the interpreter's lock (27 and 10 ms for BERT's), which every running model feels. So
those used last are kept beyond their models, within KEPT_BYTES: a model that sinks and rises has its own again.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
import xxhash
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from container.errors import BadArchive
from container.nets.config import Unsupported, fields

#: Resident bytes of a tokenizer over those of its files (BERT: 10 MB for 466 KB, GPT-2: 27 MB for 1.3 MB).
BYTES_PER_FILE_BYTE = 21

#: Of tokenizers that are kept whether or not a model uses them, by the estimate above; the last one always is.
KEPT_BYTES = 64 << 20

_Key = tuple[str, int]
_kept: OrderedDict[_Key, Tokenizer] = OrderedDict()
_known: weakref.WeakValueDictionary[_Key, Tokenizer] = weakref.WeakValueDictionary()
_lock = threading.Lock()


class Words:
    """A model's hold on its tokenizer; at rest it holds only what it was, and the tokenizer may go.

    Raises what ``load`` raises.
    """

    __slots__ = ("_key", "_model_dir", "_tokenizer")

    def __init__(self, model_dir: Path) -> None:
        self._model_dir = model_dir
        self._key, found = _load(model_dir)
        self._tokenizer: Tokenizer | None = found

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
        with _lock:
            found = _known.get(self._key)
            if found is not None:
                _keep(self._key, found)
        if found is None:
            key, found = _load(self._model_dir)
            if key != self._key:
                return False
        self._tokenizer = found
        return True


def load(model_dir: Path) -> Tokenizer:
    """Return the tokenizer of the model in ``model_dir``, without truncation and padding; do not change it.

    From tokenizer.json, else BERT's vocab.txt, else GPT-2's vocab.json and merges.txt.
    Raises BadArchive when there is none or it is broken, Unsupported when its tokenizer_config.json asks for another.
    """
    return _load(model_dir)[1]


def _load(model_dir: Path) -> tuple[_Key, Tokenizer]:
    for names, build in _BUILDERS:
        if all((model_dir / name).is_file() for name in names):
            return _shared([(model_dir / name).read_bytes() for name in names], build, model_dir)
    wanted = " or ".join(" and ".join(names) for names, _ in _BUILDERS)
    raise BadArchive(f"no tokenizer: neither {wanted} is in the model's folder")


def size_bytes(model_dir: Path) -> int:
    """Return about how many bytes of memory the tokenizer takes (once, however many models share it)."""
    files = {name for names, _ in _BUILDERS[:1] for name in names}
    if not all((model_dir / name).is_file() for name in files):
        files = {name for names, _ in _BUILDERS[1:] for name in names}
    sizes = [(model_dir / name).stat().st_size for name in files if (model_dir / name).is_file()]
    return BYTES_PER_FILE_BYTE * sum(sizes)


def cut(ids: list[int], limit: int, tail: int) -> list[int]:
    """Return ``ids`` shortened to ``limit`` from the right, the last ``tail`` (BERT's [SEP]) kept."""
    return ids if len(ids) <= limit else [*ids[: limit - tail], *ids[len(ids) - tail :]]


def _shared(files: Sequence[bytes], build: Callable[..., Tokenizer], model_dir: Path) -> tuple[_Key, Tokenizer]:
    options: dict[str, Any] = {}
    if build is not _from_json:
        options = fields(model_dir, "tokenizer_config.json") | {_ADDED: fields(model_dir, f"{_ADDED}.json")}
    choice = msgspec.json.encode({key: options.get(key) for key in _CHOICES}, order="sorted")
    digest = xxhash.xxh3_128()
    for part in (*files, choice):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    key = (digest.hexdigest(), sum(map(len, files)))
    with _lock:  # two models of one content that load at once shall not both build
        found = _known.get(key)
        if found is None:
            found = build(*files, options)
            found.no_truncation()
            found.no_padding()
            _known[key] = found
        _keep(key, found)
        return key, found


def _keep(key: _Key, used: Tokenizer) -> None:
    """Keep ``used`` as the last one, and no more than there is room for."""
    _kept[key] = used
    _kept.move_to_end(key)
    while len(_kept) > 1 and BYTES_PER_FILE_BYTE * sum(size for _, size in _kept) > KEPT_BYTES:
        _kept.popitem(last=False)


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


_BUILDERS: tuple[tuple[tuple[str, ...], Callable[..., Tokenizer]], ...] = (
    (("tokenizer.json",), _from_json),
    (("vocab.txt",), _word_piece),
    (("vocab.json", "merges.txt"), _byte_pairs),
)
