"""Tiny seeded models of the built-in kinds, written as Hugging Face folders without transformers' help; a wheel."""

from __future__ import annotations

import ctypes
import json
import mmap
import struct
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from container.memory.sizes import checkpoint_bytes
from container.nets.tokenizer import content_of

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


def tiny_bert(folder: Path, seed: int = 0, *, hidden: int = 32, layers: int = 2) -> Path:
    """A BertModel of ``hidden`` with random weights and a WordPiece vocabulary of single letters."""
    folder.mkdir(parents=True, exist_ok=True)
    inner = hidden * 2
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": len(WORDS) + 26,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": inner,
        "hidden_act": "gelu",
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    def linear(name: str, out: int, into: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": random(out, into), f"{name}.bias": random(out)}

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": 1 + random(hidden), f"{name}.bias": random(hidden)}

    tensors = {
        "embeddings.word_embeddings.weight": random(len(WORDS) + 26, hidden),
        "embeddings.position_embeddings.weight": random(64, hidden),
        "embeddings.token_type_embeddings.weight": random(2, hidden),
        **norm("embeddings.LayerNorm"),
        **linear("pooler.dense", hidden, hidden),
    }
    for layer in range(layers):
        at = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            tensors |= linear(f"{at}.attention.self.{part}", hidden, hidden)
        tensors |= linear(f"{at}.attention.output.dense", hidden, hidden) | norm(f"{at}.attention.output.LayerNorm")
        tensors |= linear(f"{at}.intermediate.dense", inner, hidden) | linear(f"{at}.output.dense", hidden, inner)
        tensors |= norm(f"{at}.output.LayerNorm")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join([*WORDS, *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 64}))
    return folder


def booked_bytes(folder: Path) -> int:
    """What a model of ours in ``folder`` takes when it is up on a CPU and shares nothing: weights and tokenizer."""
    return checkpoint_bytes(folder) + content_of(folder, "").bytes


def wheel(folder: Path, version: str) -> None:
    """A package ``greeting`` of ``version``, small enough to write by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"greeting-{version}.dist-info"
    with zipfile.ZipFile(folder / f"greeting-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr("greeting.py", f"VERSION = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: greeting\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def vast_bert(folder: Path, nbytes: int = 1 << 30) -> None:
    """A BERT with a table of words of ``nbytes``, which is a hole in the file and takes no room on the disk."""
    tiny_bert(folder)
    config = json.loads((folder / "config.json").read_text())
    file = folder / "model.safetensors"
    packed = file.read_bytes()
    size = struct.unpack("<Q", packed[:8])[0]
    header, data = json.loads(packed[8 : 8 + size]), packed[8 + size :]
    shape = [nbytes // config["hidden_size"] // 4, config["hidden_size"]]
    end = len(data) + shape[0] * shape[1] * 4
    header["embeddings.word_embeddings.weight"] |= {"shape": shape, "data_offsets": [len(data), end]}
    # What was there becomes a tensor that nobody asks for: a file without gaps is wanted.
    words = json.loads(packed[8 : 8 + size])["embeddings.word_embeddings.weight"]
    header["embeddings.position_ids"] = words
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": shape[0]}))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors at addresses that can be mapped, as safetensors does it
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text + data)
        out.truncate(8 + len(text) + end)


def anonymous_bytes() -> int:
    """How much memory this process has that is no file's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10


def cached(file: Path) -> list[bool]:
    """Whether the page cache has the file, a MiB at a time; looking brings nothing."""
    size = file.stat().st_size
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), size, mmap.MAP_PRIVATE) as mapped:
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        found = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), found) == 0
        return [bool(found[at // mmap.PAGESIZE] & 1) for at in range(0, size, 1 << 20)]


def resident_bytes(path: Path) -> int:
    """How much of the mapping of ``path`` is there to be read without a fault."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if line.endswith(str(path)))
    return next(int(line.split()[1]) << 10 for line in lines[at:] if line.startswith("Rss:"))
