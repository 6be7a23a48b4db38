"""BERT's encoder as functions of (weights, layout, inputs); follows transformers' modeling_bert.

    layout = layout_of(read(fields), weights)            # once, at load
    hidden = forward(weights, layout, ids, mask)         # [B, T, H], padded
    hidden = forward_packed(weights, layout, ids, groups)  # [N, H], no padding (nets/packing)

Nothing is kept between calls and nothing is written: any number of threads may run the same weights. Device and dtype
are those of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from container.nets import config as configs
from container.nets import packing, sequences
from container.nets import weights as checkpoint_names
from container.nets.config import Unsupported
from container.nets.linear import ACTIVATIONS, linear
from container.nets.packing import Group

Weights = Mapping[str, Tensor]
_Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


#: Tokens in one run: MiniLM on texts of 6 to 40 tokens is 5 % slower with 2,048 (the cache) and 20 % with 128.
_RUN_TOKENS = 512
_RUN_TOKENS_GPU = 16384


class Config(msgspec.Struct, frozen=True):
    """The keys of config.json that change BERT's numbers at inference, with transformers' defaults."""

    vocab_size: configs.Size = 30522
    hidden_size: configs.Size = 768
    num_hidden_layers: configs.Layers = 12
    num_attention_heads: configs.Size = 12
    intermediate_size: configs.Size = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: configs.Size = 512
    type_vocab_size: configs.Size = 2
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"
    is_decoder: bool = False
    add_cross_attention: bool = False


class Layout(NamedTuple):
    """Where a checkpoint keeps the network: its keys in the order in which the function wants them."""

    config: Config
    embeddings: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    pooler: tuple[str, ...]
    classifier: tuple[str, ...]


class Part(NamedTuple):
    """Texts of one length T out of a run. indices: which ones. hidden: their last hidden states [n, T, H]."""

    indices: list[int]
    hidden: Tensor


def read(found: Mapping[str, Any]) -> Config:
    """Return the Config in config.json's ``found``. Raises Unsupported for what the functions here do not do."""
    if found.get("model_type", "bert") != "bert":
        raise Unsupported(f"model_type {found['model_type']!r}")
    config = configs.build(found, Config)
    if config.hidden_act not in ACTIVATIONS:
        raise Unsupported(f"hidden_act {config.hidden_act!r}")
    if config.position_embedding_type != "absolute":
        raise Unsupported(f"position_embedding_type {config.position_embedding_type!r}")
    if config.is_decoder or config.add_cross_attention:
        raise Unsupported("a BERT that decodes")
    if config.hidden_size % config.num_attention_heads:
        raise Unsupported(f"hidden_size {config.hidden_size} not divisible by {config.num_attention_heads} heads")
    return config


def _layer_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    return {
        "attention.self.query.weight": (hidden, hidden),
        "attention.self.query.bias": (hidden,),
        "attention.self.key.weight": (hidden, hidden),
        "attention.self.key.bias": (hidden,),
        "attention.self.value.weight": (hidden, hidden),
        "attention.self.value.bias": (hidden,),
        "attention.output.dense.weight": (hidden, hidden),
        "attention.output.dense.bias": (hidden,),
        "attention.output.LayerNorm.weight": (hidden,),
        "attention.output.LayerNorm.bias": (hidden,),
        "intermediate.dense.weight": (inner, hidden),
        "intermediate.dense.bias": (inner,),
        "output.dense.weight": (hidden, inner),
        "output.dense.bias": (hidden,),
        "output.LayerNorm.weight": (hidden,),
        "output.LayerNorm.bias": (hidden,),
    }


def layout_of(config: Config, weights: Weights, classes: int = 0) -> Layout:
    """Return where ``weights`` keep the network, with the pooler and a head of ``classes`` outputs if over 0.

    Raises BadArchive for a missing tensor or a wrong shape, Unsupported for mixed dtypes.
    """
    hidden = config.hidden_size
    embeddings = {
        "embeddings.word_embeddings.weight": (config.vocab_size, hidden),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, hidden),
        "embeddings.token_type_embeddings.weight": (config.type_vocab_size, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    layer = _layer_shapes(config)
    layers = [{f"encoder.layer.{i}.{name}": layer[name] for name in layer} for i in range(config.num_hidden_layers)]
    pooler = {"pooler.dense.weight": (hidden, hidden), "pooler.dense.bias": (hidden,)} if classes else {}
    classifier = {"classifier.weight": (classes, hidden), "classifier.bias": (classes,)} if classes else {}
    parts: list[dict[str, tuple[int, ...]]] = [embeddings, *layers, pooler, classifier]
    keys = checkpoint_names.names(weights, {name: part[name] for part in parts for name in part}, ("bert.", ""))
    # By way of a list: what tuple() makes of a generator is cut to its length, and Python keeps 2,000 of each length.
    found = [tuple([keys[name] for name in part]) for part in parts]
    return checkpoint_names.once(Layout(config, found[0], tuple(found[1:-2]), found[-2], found[-1]))


def _padded(batch: int, length: int, heads: int, mask: Tensor | None) -> _Attend:
    allowed = None if mask is None else mask.bool()[:, None, None, :]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the mixed values of rows of one padded length."""
        q, k, v = (each.view(batch, length, heads, -1).transpose(1, 2) for each in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return mixed.transpose(1, 2).reshape(batch * length, -1)

    return attend


def _grouped(groups: Sequence[Group], heads: int) -> _Attend:
    sizes = [count * length for count, length in groups]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the mixed values of rows that stand one after another, group by group, without padding."""
        mixed = []
        for (count, length), *parts in zip(groups, *(each.split_with_sizes(sizes) for each in (q, k, v)), strict=True):
            a, b, c = (part.view(count, length, heads, -1).transpose(1, 2) for part in parts)
            mixed.append(F.scaled_dot_product_attention(a, b, c).transpose(1, 2).reshape(count * length, -1))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    return attend


def _norm(x: Tensor, gain: Tensor, shift: Tensor, config: Config) -> Tensor:
    return F.layer_norm(x, (config.hidden_size,), gain, shift, config.layer_norm_eps)


def _trunk(
    weights: Weights, layout: Layout, ids: Tensor, positions: Tensor, types: Tensor | None, attend: _Attend
) -> Tensor:
    """Return the last hidden states [N, H] of tokens ``ids`` [N] at ``positions`` [N]."""
    config = layout.config
    words, places, kinds, gain, shift = (weights[key] for key in layout.embeddings)
    # In transformers' order of addition, so that the sums round alike.
    x = F.embedding(ids, words) + (kinds[0] if types is None else F.embedding(types, kinds))
    x = _norm(x.add_(F.embedding(positions, places)), gain, shift, config)
    for keys in layout.layers:
        wq, bq, wk, bk, wv, bv, wo, bo, g1, s1, wi, bi, wd, bd, g2, s2 = (weights[key] for key in keys)
        mixed = attend(linear(x, wq, bq), linear(x, wk, bk), linear(x, wv, bv))
        x = _norm(linear(mixed, wo, bo).add_(x), g1, s1, config)
        x = _norm(linear(linear(x, wi, bi, config.hidden_act), wd, bd).add_(x), g2, s2, config)
    return x


def forward(
    weights: Weights, layout: Layout, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None
) -> Tensor:
    """Return the last hidden states [B, T, H] of ``ids`` [B, T] int64, T at most max_position_embeddings.

    mask: [B, T], 0 where padded; leave it out when nothing is, attention is faster so. types: [B, T] int64 or None = 0.
    """
    batch, length = ids.shape
    positions = torch.arange(length, device=ids.device).repeat(batch)
    attend = _padded(batch, length, layout.config.num_attention_heads, mask)
    flat = None if types is None else types.reshape(-1)
    return _trunk(weights, layout, ids.reshape(-1), positions, flat, attend).view(batch, length, -1)


def forward_packed(
    weights: Weights,
    layout: Layout,
    ids: Tensor,
    positions: Tensor,
    groups: Sequence[Group],
    types: Tensor | None = None,
) -> Tensor:
    """Return the last hidden states [N, H] of sequences laid end to end: ``ids``, ``positions``, ``types`` [N] int64.

    groups: (count, length) of the runs of equal length, in order; they cover all N tokens.
    """
    return _trunk(weights, layout, ids, positions, types, _grouped(groups, layout.config.num_attention_heads))


def encode(
    weights: Weights, layout: Layout, texts: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None
) -> Iterator[list[Part]]:
    """Yield, a run at a time, the parts of ``texts`` that ran: together every text once, its padding cut off.

    texts, types: token ids and their types (None = 0). Without padding on a CPU, where rows cost; padded on a GPU,
    where launches do.
    """
    if weights[layout.embeddings[0]].device.type == "cpu":
        return packed_runs(weights, layout, texts, types)
    return padded_runs(weights, layout, texts, types)


def packed_runs(
    weights: Weights, layout: Layout, texts: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None
) -> Iterator[list[Part]]:
    """See encode. Texts are laid end to end."""
    device = weights[layout.embeddings[0]].device
    for pack in packing.pack([len(text) for text in texts], _RUN_TOKENS):
        ids = sequences.end_to_end(texts, pack).to(device)
        kinds = None if types is None else sequences.end_to_end(types, pack).to(device)
        groups = [*pack.groups, (1, pack.filler)] if pack.filler else pack.groups
        hidden = forward_packed(weights, layout, ids, sequences.positions(pack).to(device), groups, kinds)
        parts, start, token = [], 0, 0
        for count, length in pack.groups:
            rows = hidden[token : token + count * length].view(count, length, -1)
            parts.append(Part(pack.order[start : start + count], rows))
            start, token = start + count, token + count * length
        yield parts


def padded_runs(
    weights: Weights, layout: Layout, texts: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None
) -> Iterator[list[Part]]:
    """See encode. Texts of similar length lie side by side, padded to the longest."""
    device = weights[layout.embeddings[0]].device
    for pack in packing.pack([len(text) for text in texts], _RUN_TOKENS_GPU):
        ids, mask = sequences.side_by_side(texts, pack)
        kinds = None if types is None else sequences.side_by_side(types, pack)[0].to(device)
        hidden = forward(weights, layout, ids.to(device), None if mask is None else mask.to(device), kinds)
        parts, start = [], 0
        for count, length in pack.groups:
            parts.append(Part(pack.order[start : start + count], hidden[start : start + count, :length]))
            start += count
        yield parts


def classify(weights: Weights, layout: Layout, first: Tensor) -> Tensor:
    """Return the logits [B, classes] of the hidden states ``first`` [B, H] of each text's first token."""
    wp, bp = (weights[key] for key in layout.pooler)
    wc, bc = (weights[key] for key in layout.classifier)
    return F.linear(torch.tanh(F.linear(first, wp, bp)), wc, bc)
