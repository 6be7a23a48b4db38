"""ONNX graphs, through onnxruntime (the extra ``onnx``). What config.pbtxt leaves out is taken from the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from container.archive.manifest import TensorSpec
from container.errors import BadAnswer, BadArchive, LoadFailed
from container.protocol import dtypes
from container.protocol.v2 import Tensor
from handlers.graphs import texts

#: onnxruntime's names of element types -> v2's.
_TYPES = {
    "float": "FP32",
    "double": "FP64",
    "float16": "FP16",
    "bool": "BOOL",
    "string": "BYTES",
    **{f"{sign}int{bits}": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class OnnxGraph:
    """See ``handlers.graphs.Graph``. weights_bytes: the file's, which is nearly all weights."""

    def __init__(
        self, path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], device: str, *, batched: bool
    ) -> None:
        self._session = _session(path, device)
        self.weights_bytes = path.stat().st_size
        self.inputs = _declared("input", inputs, self._session.get_inputs(), batched)
        self.outputs = _declared("output", outputs, self._session.get_outputs(), batched)

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """See Graph."""
        feed = {name: _fed(tensor) for name, tensor in inputs.items()}
        names = [spec.name for spec in self.outputs]
        values = self._session.run(names, feed)
        return [_answered(name, value) for name, value in zip(names, values, strict=True)]


def _session(path: Path, device: str) -> Any:
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as faults
    except ImportError as error:
        raise LoadFailed(
            f"{path.name} is ONNX and the server lacks onnxruntime, or cannot load it: pip install 'berth[onnx]'"
        ) from error
    wanted = ["CPUExecutionProvider"] if device == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
    there = onnxruntime.get_available_providers()
    broken = (faults.Fail, faults.InvalidArgument, faults.InvalidGraph, faults.InvalidProtobuf, faults.NotImplemented)
    try:
        return onnxruntime.InferenceSession(str(path), providers=[name for name in wanted if name in there])
    except broken as error:
        raise BadArchive(f"{path.name} cannot be loaded: {str(error).replace(str(path.parent), '')[:300]}") from error


def _declared(what: str, specs: Sequence[TensorSpec], there: Sequence[Any], batched: bool) -> list[TensorSpec]:
    """``specs`` if there are any, else what the file says. Raises BadArchive for names that the file does not have."""
    names = [each.name for each in there]
    unknown = [spec.name for spec in specs if spec.name not in names]
    if unknown:
        raise BadArchive(f"config.pbtxt declares {what} {', '.join(unknown)}; the ONNX file has {', '.join(names)}")
    if specs:
        return list(specs)
    found: list[TensorSpec] = []
    for each in there:
        datatype = _TYPES.get(each.type.removeprefix("tensor(").removesuffix(")"))
        if datatype is None:
            raise BadArchive(f"{what} {each.name} of the ONNX file is a {each.type}, which has no v2 datatype")
        dims = [size if isinstance(size, int) else -1 for size in each.shape]
        found.append(TensorSpec(each.name, datatype, dims[1:] if batched else dims))
    return found


def _fed(tensor: Tensor) -> Any:
    if tensor.datatype != "BYTES":
        return tensor.data
    found = np.empty(len(tensor.data.ravel()), object)
    found[:] = texts(tensor)
    return found.reshape(tensor.shape)


def _answered(name: str, value: Any) -> Tensor:
    if not isinstance(value, np.ndarray):
        raise BadAnswer(f"output {name!r} is a {type(value).__name__}, not a tensor (for scikit-learn: zipmap=False)")
    if value.dtype.hasobject:
        flat = np.empty(value.size, object)
        flat[:] = [str(each).encode() for each in value.ravel()]
        value = flat.reshape(value.shape)
    return Tensor(name, dtypes.to_name(value.dtype), value.shape, value)
