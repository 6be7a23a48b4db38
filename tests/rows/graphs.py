"""Triton repositories as their users build them: small seeded networks, exported; config.pbtxt as published."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

#: Row E's, but for the width of the output and, as there, with no max_batch_size.
BERT_CONFIG = """
name: "bert_model"
platform: "pytorch_libtorch"
input [
  { name: "input_ids" data_type: TYPE_INT32 dims: [1, 512] },
  { name: "attention_mask" data_type: TYPE_INT32 dims: [1, 512] }
]
output [
  { name: "OUTPUT" data_type: TYPE_FP32 dims: [512, 32] }
]
"""
#: Row F's.
RESNET_CONFIG = """
name: "resnet"
platform: "pytorch_libtorch"
max_batch_size: 128
input {
  name: "INPUT__0"
  data_type: TYPE_FP32
  dims: 3
  dims: 224
  dims: 224
}
output {
  name: "OUTPUT__0"
  data_type: TYPE_FP32
  dims: 1000
}
instance_group { count: 1  kind: KIND_GPU }
dynamic_batching { preferred_batch_size: 128 }
"""


def tiny_bert(seed: int = 0) -> Any:
    """A transformers BERT that answers tuples, as ``torchscript=True`` had it."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertModel(BertConfig(vocab_size=64, max_position_embeddings=512, return_dict=False, **sizes)).eval()


def traced(network: nn.Module, *inputs: Tensor) -> Any:
    """``torch.jit.trace``, without what it says of shapes that it takes for constants."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        trace: Any = torch.jit.trace
        return trace(network, inputs)


def traced_bert(network: nn.Module) -> Any:
    """As row E traces it: on a short sentence without padding."""
    ids = torch.tensor([[2, 14, 21, 9, 33, 48, 7, 3]])
    return traced(network, ids, torch.ones_like(ids))


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(into, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        self.around = nn.Conv2d(into, out, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.around(x))


class TinyResNet(nn.Module):
    """[n, 3, H, W] to [n, 1000]; can be scripted."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, 8, 7, 4, 3)
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 16))
        self.head = nn.Linear(16, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))).mean([2, 3]))


def scripted(network: nn.Module) -> Any:
    """``torch.jit.script``, as row F has it."""
    script: Any = torch.jit.script
    return script(network)


def write_repository(folder: Path, config: str, module: Any, *, version: int = 1, file: str = "model.pt") -> Path:
    """``folder``/config.pbtxt and ``folder``/``version``/model.pt; ``module`` is saved as the ending says."""
    home = folder / str(version)
    home.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(config)
    if isinstance(module, bytes):
        (home / file).write_bytes(module)
    elif file.endswith(".pt2"):
        torch.export.save(module, home / file)
    else:
        module.save(str(home / file))
    return folder
