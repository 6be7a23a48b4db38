"""The demo's reader: a small ResNet that names handwritten digits.

    python -m local_test.train_digits FOLDER

Trained on scikit-learn's digits (1,797 images of 8x8 from the UCI repository), enlarged to 32x32 RGB; a fifth is held
out and never trained on. 80 thousand weights, a few seconds on two cores.
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.utils.logging import disable_progress_bar

from local_test.learning import NotLearnt, one_thread
from local_test.terminal import Progress

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SIDE = 32  # pixels
_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": _SIDE, "width": _SIDE},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the outcome. least_accuracy: on the held-out fifth."""

    epochs: int = 8
    batch: int = 64
    rate: float = 3e-3
    seed: int = 0
    least_accuracy: float = 0.97


def train(folder: Path, recipe: Recipe) -> float:
    """Train and write config, weights (safetensors) and preprocessor to ``folder``; returns the held-out accuracy.

    Raises NotLearnt when that is below what the recipe asks for.
    """
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(np.stack([np.asarray(_enlarge(image)) for image in images]))
    inputs = (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    targets = torch.from_numpy(labels)
    held, rest = _split(len(images), recipe.seed)
    torch.manual_seed(recipe.seed)
    model: Any = ResNetForImageClassification(
        ResNetConfig(
            embedding_size=16,
            hidden_sizes=[16, 32, 64],
            depths=[1, 1, 1],
            layer_type="basic",
            id2label=dict(enumerate(NAMES)),
            label2id={name: i for i, name in enumerate(NAMES)},
        )
    )
    with one_thread():
        _fit(model, inputs[rest], targets[rest], recipe)
    model.eval()
    with torch.no_grad():
        right = model(pixel_values=inputs[held]).logits.argmax(1) == targets[held]
    accuracy = float(right.float().mean())
    if accuracy < recipe.least_accuracy:
        raise NotLearnt(f"only {accuracy:.1%} of the held-out digits are named rightly")
    disable_progress_bar()  # type: ignore[no-untyped-call] # of writing one small file
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR, indent=2) + "\n")
    return accuracy


def held_out(digit: int) -> bytes:
    """Return a PNG, 32x32 RGB, of the first held-out image that shows ``digit``."""
    images, labels = load_digits(return_X_y=True)
    held, _ = _split(len(images), Recipe().seed)
    first = next(i for i in held.tolist() if labels[i] == digit)
    png = io.BytesIO()
    _enlarge(images[first]).save(png, "PNG")
    return png.getvalue()


def _split(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    return order[: count // 5], order[count // 5 :]


def _enlarge(image: np.ndarray) -> Image.Image:
    """Return 64 values of 0..16 as a 32x32 RGB picture, bright on dark."""
    small = Image.fromarray((image.reshape(8, 8) * (255 / 16)).round().astype(np.uint8))
    return small.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).convert("RGB")


def _fit(model: Any, inputs: torch.Tensor, targets: torch.Tensor, recipe: Recipe) -> None:
    steps = recipe.epochs * (len(inputs) // recipe.batch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, steps)
    progress = Progress("training the reader, step", steps)
    model.train()
    for step in range(steps):
        if step % (len(inputs) // recipe.batch) == 0:
            batches = torch.split(torch.randperm(len(inputs)), recipe.batch)
        rows = batches[step % (len(inputs) // recipe.batch)]
        loss = torch.nn.functional.cross_entropy(model(pixel_values=inputs[rows]).logits, targets[rows])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        progress.at(step + 1, f"loss {loss.item():.2f}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit((__doc__ or "").strip())
    print(f"held-out accuracy {train(Path(sys.argv[1]), Recipe()):.1%}")
