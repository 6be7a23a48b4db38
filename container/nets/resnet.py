"""ResNet for image classification as a function of (weights, layout, pixels); follows transformers' modeling_resnet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from container.nets import config as configs
from container.nets import weights as checkpoint_names
from container.nets.config import Unsupported
from container.nets.linear import linear

Weights = Mapping[str, Tensor]

_EPSILON = 1e-5  # torch's BatchNorm2d, which transformers leaves as it is
_NORM = ("normalization.weight", "normalization.bias", "normalization.running_mean", "normalization.running_var")


class Config(msgspec.Struct, frozen=True):
    """The keys of config.json that change ResNet's numbers at inference, with transformers' defaults."""

    num_channels: configs.Size = 3
    embedding_size: configs.Size = 64
    hidden_sizes: tuple[configs.Size, ...] = (256, 512, 1024, 2048)
    depths: tuple[configs.Layers, ...] = (3, 4, 6, 3)
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False


class Conv(NamedTuple):
    """A convolution and the norm behind it. keys: kernel, then gain, shift, mean and variance of the norm."""

    keys: tuple[str, ...]
    stride: int


class Block(NamedTuple):
    """A residual layer; ``shortcut`` None = the input itself."""

    convs: tuple[Conv, ...]
    shortcut: Conv | None


class Layout(NamedTuple):
    """Where a checkpoint keeps the network, in the order in which it runs."""

    config: Config
    stem: Conv
    blocks: tuple[Block, ...]
    classifier: tuple[str, str]


def read(found: Mapping[str, Any]) -> Config:
    """Return the Config in config.json's ``found``. Raises Unsupported for what the function here does not do."""
    if found.get("model_type", "resnet") != "resnet":
        raise Unsupported(f"model_type {found['model_type']!r}")
    config = configs.build(found, Config)
    if config.hidden_act != "relu":
        raise Unsupported(f"hidden_act {config.hidden_act!r}")
    if len(config.hidden_sizes) != len(config.depths):
        raise Unsupported(f"{len(config.hidden_sizes)} hidden_sizes but {len(config.depths)} depths")
    return config


class _Names:
    """Collects the names and shapes of tensors while the network is walked once."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def conv(self, name: str, into: int, out: int, kernel: int, stride: int) -> Conv:
        """Note the tensors of one convolution with its norm and return it."""
        keys = (f"{name}.convolution.weight", *(f"{name}.{part}" for part in _NORM))
        self.shapes |= {keys[0]: (out, into, kernel, kernel)} | dict.fromkeys(keys[1:], (out,))
        return Conv(keys, stride)

    def block(self, name: str, config: Config, into: int, out: int, stride: int) -> Block:
        """Note the tensors of one residual block and return it."""
        shortcut = self.conv(f"{name}.shortcut", into, out, 1, stride) if into != out or stride != 1 else None
        if config.layer_type == "basic":
            plan = [(into, out, 3, stride), (out, out, 3, 1)]
        else:
            narrow, early = out // 4, config.downsample_in_bottleneck
            strides = (stride, 1) if early else (1, stride)
            plan = [(into, narrow, 1, strides[0]), (narrow, narrow, 3, strides[1]), (narrow, out, 1, 1)]
        return Block(tuple(self.conv(f"{name}.layer.{j}", *part) for j, part in enumerate(plan)), shortcut)


def _spelt(conv: Conv, keys: Mapping[str, str]) -> Conv:
    return Conv(tuple(keys[name] for name in conv.keys), conv.stride)


def layout_of(config: Config, weights: Weights, classes: int) -> Layout:
    """Return where ``weights`` keep the network and its head. Raises BadArchive, or Unsupported for mixed dtypes."""
    walk = _Names()
    stem = walk.conv("embedder.embedder", config.num_channels, config.embedding_size, 7, 2)
    blocks, into = [], config.embedding_size
    for stage, (out, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
        for layer in range(depth):
            halve = layer == 0 and (stage > 0 or config.downsample_in_first_stage)
            blocks.append(walk.block(f"encoder.stages.{stage}.layers.{layer}", config, into, out, 2 if halve else 1))
            into = out
    head = {"classifier.1.weight": (classes, into), "classifier.1.bias": (classes,)}
    keys = checkpoint_names.names(weights, walk.shapes | head, ("resnet.", ""))
    spelt = tuple(
        Block(tuple(_spelt(conv, keys) for conv in block.convs), block.shortcut and _spelt(block.shortcut, keys))
        for block in blocks
    )
    return Layout(config, _spelt(stem, keys), spelt, (keys["classifier.1.weight"], keys["classifier.1.bias"]))


def _convolve(x: Tensor, conv: Conv, weights: Weights, relu: bool = False) -> Tensor:
    """Convolution, norm and perhaps ReLU. On a CPU the norm goes into the kernel where that is the smaller tensor."""
    kernel, gain, shift, mean, variance = (weights[key] for key in conv.keys)
    if x.device.type != "cpu":
        out = F.conv2d(x, kernel, stride=conv.stride, padding=kernel.shape[-1] // 2)
    else:
        pixels = x.shape[0] * x.shape[2] * x.shape[3] // conv.stride**2
        if x.dtype is torch.float32 and pixels > kernel[0].numel():
            scale = gain * (variance + _EPSILON).rsqrt()
            return _on_cpu(x, kernel * scale[:, None, None, None], shift - mean * scale, conv.stride, relu)
        out = _on_cpu(x, kernel, None, conv.stride, relu=False)
    out = F.batch_norm(out, mean, variance, gain, shift, training=False, eps=_EPSILON)
    return out.relu_() if relu else out


def _on_cpu(x: Tensor, kernel: Tensor, bias: Tensor | None, stride: int, relu: bool) -> Tensor:
    """The convolution, channels last in and out (0.55 of the time of torch's own way for ResNet-50 at batch 8)."""
    size = kernel.shape[-1]
    if size == 1:  # a dense layer over pixels; torch would do it slowly
        x = x[:, :, ::stride, ::stride] if stride > 1 else x
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
        out = linear(rows, kernel.view(-1, channels), bias, "relu" if relu else "")
        return out.view(batch, height, width, -1).permute(0, 3, 1, 2)
    if kernel.numel() > 8 * x.numel():  # few pixels: bringing the kernel into channels last costs more than they do
        x = x.contiguous()
    out = F.conv2d(x, kernel, bias, stride=stride, padding=size // 2)
    out = out.relu_() if relu else out
    return out.contiguous(memory_format=torch.channels_last)


def forward(weights: Weights, layout: Layout, pixels: Tensor) -> Tensor:
    """Return the logits [B, classes] of ``pixels`` [B, channels, height, width] in the dtype of the weights."""
    if pixels.device.type == "cpu":
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    x = F.max_pool2d(_convolve(pixels, layout.stem, weights, relu=True), kernel_size=3, stride=2, padding=1)
    for block in layout.blocks:
        residual = x if block.shortcut is None else _convolve(x, block.shortcut, weights)
        for conv in block.convs[:-1]:
            x = _convolve(x, conv, weights, relu=True)
        x = _convolve(x, block.convs[-1], weights).add_(residual).relu_()
    gain, shift = (weights[key] for key in layout.classifier)
    return F.linear(x.mean((2, 3)), gain, shift)
