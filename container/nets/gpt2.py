"""GPT-2 as functions of (weights, layout, inputs, cache); follows transformers' modeling_gpt2.

    cache = KvCache(layout.config, batch=2, tokens=64, like=weights[layout.words])
    logits = prefill(weights, layout, ids, positions, groups, cache)   # [B, V], of each prompt's last token
    logits = step(weights, layout, tokens, cache)                      # [B, V], one more token a row

Each row of the cache has its own length, so prompts of different lengths need no padding and every token sits at the
position that it has alone. The cache is the only thing written; weights are read only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from container.nets import config as configs
from container.nets import weights as checkpoint_names
from container.nets.config import Unsupported
from container.nets.linear import ACTIVATIONS, linear
from container.nets.packing import Group

Weights = Mapping[str, Tensor]
_Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


class Config(msgspec.Struct, frozen=True):
    """The keys of config.json that change GPT-2's numbers at inference, with transformers' defaults."""

    vocab_size: configs.Size = 50257
    n_positions: configs.Size = 1024
    n_embd: configs.Size = 768
    n_layer: configs.Layers = 12
    n_head: configs.Size = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True

    @property
    def inner(self) -> int:
        """Width of the feed-forward layer."""
        return self.n_inner or 4 * self.n_embd


class Layout(NamedTuple):
    """Where a checkpoint keeps the network: its keys in the order in which the functions want them."""

    config: Config
    words: str
    places: str
    layers: tuple[tuple[str, ...], ...]
    norm: tuple[str, str]
    head: str


class KvCache:
    """Keys and values of ``batch`` rows, with room for ``tokens`` each; ``lengths`` says how many each row has.

    keys, values: [layers, batch, heads, tokens, head size], of the dtype and device of ``like``. Rows are dropped by
    putting the last one in their place.
    """

    def __init__(self, config: Config, batch: int, tokens: int, like: Tensor) -> None:
        shape = (config.n_layer, batch, config.n_head, tokens, config.n_embd // config.n_head)
        # Zeros, not what lay there: a masked NaN times a weight of 0 would still be NaN.
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        self.lengths: list[int] = []

    @staticmethod
    def bytes(config: Config, batch: int, tokens: int, itemsize: int = 4) -> int:
        """Return what a cache of that size takes, for booking it beforehand."""
        return 2 * config.n_layer * batch * tokens * config.n_embd * itemsize

    def drop(self, row: int) -> None:
        """Forget ``row``; the last row takes its number."""
        last = len(self.lengths) - 1
        if row != last:
            tokens = self.lengths[last]
            for kept in (self.keys, self.values):
                kept[:, row, :, :tokens] = kept[:, last, :, :tokens]
            self.lengths[row] = tokens
        self.lengths.pop()


def read(found: Mapping[str, Any]) -> Config:
    """Return the Config in config.json's ``found``. Raises Unsupported for what the functions here do not do."""
    if found.get("model_type", "gpt2") != "gpt2":
        raise Unsupported(f"model_type {found['model_type']!r}")
    config = configs.build(found, Config, _ALIASES)
    if config.activation_function not in ACTIVATIONS:
        raise Unsupported(f"activation_function {config.activation_function!r}")
    if config.add_cross_attention:
        raise Unsupported("a GPT-2 with cross attention")
    if config.n_embd % config.n_head:
        raise Unsupported(f"n_embd {config.n_embd} not divisible by {config.n_head} heads")
    return config


def layout_of(config: Config, weights: Weights) -> Layout:
    """Return where ``weights`` keep the network. Raises BadArchive, or Unsupported for mixed dtypes."""
    wide, inner = config.n_embd, config.inner
    layer = {
        "ln_1.weight": (wide,),
        "ln_1.bias": (wide,),
        "attn.c_attn.weight": (wide, 3 * wide),
        "attn.c_attn.bias": (3 * wide,),
        "attn.c_proj.weight": (wide, wide),
        "attn.c_proj.bias": (wide,),
        "ln_2.weight": (wide,),
        "ln_2.bias": (wide,),
        "mlp.c_fc.weight": (wide, inner),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (inner, wide),
        "mlp.c_proj.bias": (wide,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config.vocab_size, wide),
        "wpe.weight": (config.n_positions, wide),
        "ln_f.weight": (wide,),
        "ln_f.bias": (wide,),
        **{f"h.{i}.{name}": shape for i in range(config.n_layer) for name, shape in layer.items()},
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, wide)
    keys = checkpoint_names.names(weights, shapes, ("transformer.", ""))
    layers = tuple(tuple(keys[f"h.{i}.{name}"] for name in layer) for i in range(config.n_layer))
    head = keys.get("lm_head.weight", keys["wte.weight"])
    norm = (keys["ln_f.weight"], keys["ln_f.bias"])
    return checkpoint_names.once(Layout(config, keys["wte.weight"], keys["wpe.weight"], layers, norm, head))


def _scale(config: Config, layer: int) -> float:
    scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


def _trunk(weights: Weights, layout: Layout, ids: Tensor, positions: Tensor, attend: _Attend) -> Tensor:
    """Return the hidden states [N, H] before the last norm of tokens ``ids`` [N] at ``positions`` [N]."""
    config = layout.config
    x = F.embedding(ids, weights[layout.words]).add_(F.embedding(positions, weights[layout.places]))
    for index, keys in enumerate(layout.layers):
        g1, s1, wa, ba, wo, bo, g2, s2, wi, bi, wd, bd = (weights[key] for key in keys)
        normed = F.layer_norm(x, (config.n_embd,), g1, s1, config.layer_norm_epsilon)
        q, k, v = linear(normed, wa.t(), ba).chunk(3, dim=1)
        x = linear(attend(index, q, k, v), wo.t(), bo).add_(x)
        normed = F.layer_norm(x, (config.n_embd,), g2, s2, config.layer_norm_epsilon)
        x = linear(linear(normed, wi.t(), bi, config.activation_function), wd.t(), bd).add_(x)
    return x


def _logits(weights: Weights, layout: Layout, last: Tensor) -> Tensor:
    gain, shift = (weights[key] for key in layout.norm)
    normed = F.layer_norm(last, (layout.config.n_embd,), gain, shift, layout.config.layer_norm_epsilon)
    return linear(normed, weights[layout.head], None)


def prefill(
    weights: Weights, layout: Layout, ids: Tensor, positions: Tensor, groups: Sequence[Group], cache: KvCache
) -> Tensor:
    """Append prompts laid end to end as rows of ``cache`` and return the logits [rows, V] of their last tokens.

    ids, positions: [N] int64; groups: (count, length) of the runs of equal length, in the order of the rows; tokens
    behind the last group are filler (nets/packing).
    """
    heads, first = layout.config.n_head, len(cache.lengths)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the mixed values of new prompts, whose keys and values go into the cache."""
        mixed, row, start = q.new_zeros(q.shape), first, 0
        for count, length in groups:
            tokens = slice(start, start + count * length)
            a, b, c = (part[tokens].view(count, length, heads, -1).transpose(1, 2) for part in (q, k, v))
            cache.keys[layer, row : row + count, :, :length] = b
            cache.values[layer, row : row + count, :, :length] = c
            out = F.scaled_dot_product_attention(a, b, c, is_causal=True, scale=_scale(layout.config, layer))
            mixed[tokens] = out.transpose(1, 2).reshape(count * length, -1)
            row, start = row + count, tokens.stop
        return mixed

    hidden = _trunk(weights, layout, ids, positions, attend)
    lengths = [length for count, length in groups for _ in range(count)]
    cache.lengths += lengths
    ends = torch.tensor(lengths, device=hidden.device).cumsum(0) - 1
    return _logits(weights, layout, hidden[ends])


def step(weights: Weights, layout: Layout, tokens: Tensor, cache: KvCache) -> Tensor:
    """Append ``tokens`` [rows] int64 to the rows of ``cache`` and return the logits [rows, V] of what follows."""
    rows, heads = len(cache.lengths), layout.config.n_head
    even = len(set(cache.lengths)) == 1
    longest = max(cache.lengths) + 1
    places = torch.tensor(cache.lengths, device=tokens.device)
    numbers = torch.arange(rows, device=tokens.device)
    allowed = None if even else (torch.arange(longest, device=tokens.device) <= places[:, None])[:, None, None]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the mixed values of one new token a row, over all that the cache holds of the row."""
        keys, values = cache.keys[layer], cache.values[layer]
        for kept, new in ((keys, k), (values, v)):
            if even:
                kept[:rows, :, longest - 1] = new.view(rows, heads, -1)
            else:
                kept[numbers, :, places] = new.view(rows, heads, -1)
        out = F.scaled_dot_product_attention(
            q.view(rows, heads, 1, -1),
            keys[:rows, :, :longest],
            values[:rows, :, :longest],
            attn_mask=allowed,
            scale=_scale(layout.config, layer),
        )
        return out.view(rows, -1)

    hidden = _trunk(weights, layout, tokens, places, attend)
    cache.lengths = [length + 1 for length in cache.lengths]
    return _logits(weights, layout, hidden)
