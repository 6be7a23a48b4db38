"""The demo's writer: a small GPT-2 that learns one text by heart.

    python -m local_test.train_prose FOLDER

Byte-level BPE of 1,024 tokens, 4 layers of width 192, 2 million weights, about 45 seconds. It is overfitted on purpose:
a person can then check every word that it writes against the text.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from local_test.learning import NotLearnt, one_thread
from local_test.terminal import Progress

TEXT = Path(__file__).parent / "texts" / "alice.txt"
END = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the outcome; ``window`` and ``batch`` in tokens and windows."""

    vocabulary: int = 1024
    width: int = 192
    layers: int = 4
    window: int = 128
    batch: int = 8
    steps: int = 260
    rate: float = 3e-3
    seed: int = 0


def train(text: str, folder: Path, recipe: Recipe) -> None:
    """Train on ``text`` and write config, weights (safetensors, float32) and tokenizer to ``folder``.

    Raises NotLearnt when the model cannot continue the text word for word from a few places.
    """
    tokenizer = _tokenizer(text, recipe)
    ids = torch.tensor(tokenizer.encode(text).ids)
    torch.manual_seed(recipe.seed)
    end = tokenizer.token_to_id(END)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=recipe.window,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
    )
    model: Any = GPT2LMHeadModel(config)
    with one_thread():
        _fit(model, ids, recipe)
    model.eval()
    _check(model, ids)
    disable_progress_bar()  # type: ignore[no-untyped-call] # of writing one small file
    model.save_pretrained(folder)
    wrapped: Any = PreTrainedTokenizerFast
    wrapped(tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=recipe.window).save_pretrained(
        folder
    )


def _tokenizer(text: str, recipe: Recipe) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def _fit(model: Any, ids: torch.Tensor, recipe: Recipe) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, recipe.steps)
    generator = torch.Generator().manual_seed(recipe.seed)
    progress = Progress("training the writer, step", recipe.steps)
    model.train()
    for step in range(1, recipe.steps + 1):
        # The text is read in a circle, or its first and last words would hardly ever be seen.
        starts = torch.randint(0, len(ids), (recipe.batch, 1), generator=generator)
        windows = ids[(starts + torch.arange(recipe.window)) % len(ids)]
        logits = model(input_ids=windows).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        progress.at(step, f"loss {loss.item():.2f}")


@torch.no_grad()
def _check(model: Any, ids: torch.Tensor) -> None:
    """From ten places of the text, twelve tokens of prompt: the next twelve must be the text's own."""
    places = range(0, len(ids) - 24, max(math.ceil((len(ids) - 24) / 10), 1))
    windows = torch.stack([ids[at : at + 24] for at in places])
    prompts = windows[:, :12]
    said = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    wrong = sum(not torch.equal(a, b) for a, b in zip(said, windows, strict=True))
    if wrong > len(windows) // 10:
        raise NotLearnt(f"the writer went astray at {wrong} of {len(windows)} places of its text; train it longer")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit((__doc__ or "").strip())
    train(TEXT.read_text(encoding="utf-8"), Path(sys.argv[1]), Recipe())
