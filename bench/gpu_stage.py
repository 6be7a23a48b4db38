"""What ``bench/gpu`` measures on: the device, our memory on it, models of random weights, and plain ways beside."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from container.archive.manifest import Berth, Manifest
from container.memory.blocks import Blocks
from container.memory.cuda import CudaDevice
from container.memory.device import Device
from container.memory.regions import DeviceRegion, HostRegion
from container.memory.sim import SimDevice
from container.model.moving import Adopted, adopt_all
from container.nets import bert

GIB, MIB = 1 << 30, 1 << 20
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
_IDS = 128


@dataclass(slots=True)
class Stage:
    """The device, our memory on it, and where models lie. real: it is a GPU."""

    device: Device
    blocks: Blocks
    folder: Path
    dtype: torch.dtype
    real: bool

    def manifest(self, name: str) -> Manifest:
        """Return the manifest of the model in ``name``; weights are served as they are stored."""
        stored = str(self.dtype).removeprefix("torch.")
        return Manifest("folder", str(self.folder / name), settings=Berth(dtype=stored))  # type: ignore[arg-type]

    def open(self, name: str) -> Any:
        """Bring the model from the disk into RAM; return its views."""
        manifest = self.manifest(name)
        self.blocks.prepare(name, manifest)
        self.blocks.read(name, manifest)
        views = self.blocks.open(name, manifest, self.folder / name)
        self.blocks.rest(name)
        return views


def stage_in(folder: Path) -> Stage:
    """Return the GPU with 16 GiB of it and 8 GiB of RAM for models; the simulated device where there is none."""
    real = torch.cuda.is_available()
    device: Device = CudaDevice("cuda:0") if real else SimDevice("sim:1GiB@2GB/s")
    host = HostRegion(device, 8 * GIB if real else 64 * MIB, ThreadPoolExecutor(1))
    on_device = DeviceRegion(device, 16 * GIB if real else 64 * MIB)
    blocks = Blocks(device, host, on_device, ThreadPoolExecutor(8), allow_pickle=False, share=False)
    return Stage(device, blocks, folder, torch.float16 if real else torch.float32, real)


def write_bert(stage: Stage, name: str, seed: int, shape: dict[str, int]) -> None:
    """Write a BERT with random weights of ``seed`` in the stage's dtype."""
    config = {"model_type": "bert", "vocab_size": 30522 if shape is BASE else 500, **shape}
    parsed = bert.read(config)
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (parsed.vocab_size, parsed.hidden_size),
        "embeddings.position_embeddings.weight": (parsed.max_position_embeddings, parsed.hidden_size),
        "embeddings.token_type_embeddings.weight": (parsed.type_vocab_size, parsed.hidden_size),
        "embeddings.LayerNorm.weight": (parsed.hidden_size,),
        "embeddings.LayerNorm.bias": (parsed.hidden_size,),
    }
    for layer in range(parsed.num_hidden_layers):
        parts = bert._layer_shapes(parsed)
        shapes |= {f"encoder.layer.{layer}.{part}": size for part, size in parts.items()}
    weights = {key: (torch.randn(size, generator=generator) * 0.05).to(stage.dtype) for key, size in shapes.items()}
    for key in weights:
        if key.endswith("LayerNorm.weight"):
            weights[key] += 1
    _save(stage.folder / name, weights, config)


def write_blob(stage: Stage, name: str, numbers: int) -> None:
    """Write as many numbers as a network has, in 161 tensors (ResNet-50's count): only its bytes matter."""
    weights = {f"t{index}": torch.ones(numbers // 161, dtype=stage.dtype) for index in range(161)}
    _save(stage.folder / name, weights, {})


def _save(folder: Path, weights: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def answer(stage: Stage, weights: Any, name: str) -> torch.Tensor:
    """Return the mean hidden state [H] of 128 fixed tokens, on the CPU."""
    config = bert.read(json.loads((stage.folder / name / "config.json").read_text()))
    layout = bert.layout_of(config, weights)
    ids = (torch.arange(_IDS) * 7 % config.vocab_size).view(1, -1).to(stage.device.compute)
    with torch.inference_mode():
        return bert.forward(weights, layout, ids)[0].mean(0).float().cpu()


def modules() -> list[torch.nn.Module]:
    """Return what authors' code may build: buffers that learn, tied weights, what CUDA lays out anew, a script."""
    torch.manual_seed(1)
    tied = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    tied[1].weight = tied[0].weight
    learning = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64)).train()
    made = [tied, learning, torch.nn.LSTM(64, 64), torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())]
    scripted: Any = torch.jit.script(made.pop())  # type: ignore[no-untyped-call]
    return [*made, scripted]


def adopt(stage: Stage, module: torch.nn.Module) -> tuple[torch.nn.Module, Adopted]:
    """Bring ``module`` to the device as that of an archive's code."""
    adopted = adopt_all(module, stage.device.compute, rehearsed=not stage.real)
    assert adopted is not None, f"{type(module).__name__} cannot be moved"
    return module, adopted


def ask(module: torch.nn.Module, seed: int) -> torch.Tensor:
    """Return what ``module`` makes of eight random vectors, on the CPU."""
    with torch.no_grad():
        output = module(torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)))
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    assert found.device.type == "cpu", "the answer is not where the inputs were"
    return found


def allocated(stage: Stage) -> int:
    """Return the bytes of tensors on the device; 0 where it is rehearsed."""
    return torch.cuda.memory_allocated() if stage.real else 0


def by_hand(stage: Stage, name: str) -> dict[str, torch.Tensor]:
    return load_file(stage.folder / name / "model.safetensors", device=stage.device.compute)


def bytes_of(stage: Stage, name: str) -> int:
    return sum(tensor.nbytes for tensor in load_file(stage.folder / name / "model.safetensors").values())


def timed(work: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def rise(stage: Stage, name: str) -> float:
    """Seconds of one rise; it sinks again."""
    took = timed(stage.blocks.lift, name)
    stage.blocks.lower(name)
    return took


def rise_beside_work(stage: Stage, name: str) -> float:
    """A rise while the device multiplies matrices."""
    side = 4096 if stage.real else 64
    left = torch.ones(side, side, dtype=stage.dtype, device=stage.device.compute)
    for _ in range(20):
        torch.mm(left, left)
    took = timed(stage.blocks.lift, name)
    stage.device.mark().synchronize()
    stage.blocks.lower(name)
    return took


def bandwidth(stage: Stage) -> float:
    """GB/s of one pinned copy, 1 GiB on a GPU; of torch's own pinned memory, so that it is nobody's arena."""
    size = GIB if stage.real else 4 * MIB
    source, target = _buffers(stage, size)
    stage.device.copy([(target, source)]).synchronize()
    return size / timed(lambda: stage.device.copy([(target, source)]).synchronize()) / 1e9


_kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


def _buffers(stage: Stage, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    if size not in _kept:
        _kept[size] = (stage.device.pinned(size), stage.device.block(size))
        _kept[size][0].fill_(1)
    return _kept[size]


def stock_load(stage: Stage, path: Path) -> None:
    tensors = load_file(path, device=stage.device.compute)
    stage.device.mark().synchronize()
    del tensors
