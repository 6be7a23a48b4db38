"""Tensors in, tensors out: exported graphs in a Triton repository, asked in the KServe v2 protocol.

    {"inputs": [{"name": "input_ids", "shape": [1, 14], "datatype": "INT32", "data": [101, ...]}, ...]}
    -> {"model_name": ..., "model_version": "1", "outputs": [{"name": "OUTPUT", "shape": [1, 14, 768], ...}]}

JSON (also under octet-stream, as Triton's users send it to SageMaker) or with binary tensors. What config.pbtxt says
of the inputs is held to; of the outputs the network knows better, a difference is logged once. With max_batch_size over
0 the first dimension is a batch, and requests of the same shapes run together; with 0 every request runs alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from container import log
from container.archive.manifest import TensorSpec, Triton
from container.archive.triton import read_config
from container.errors import BadAnswer, BadInput, MediaType, ModelNotFound
from container.handler import Context, Handler
from container.payload import JSON, Payload
from container.protocol import dtypes, media, v2, v2_binary, v2_header
from container.protocol.v2 import Tensor
from handlers.graphs import Graph, open_graph

_log = log.get(__name__)

_READ = (JSON, "application/octet-stream", v2_header.JSON_TYPE, v2_header.BINARY_TYPE)
#: The platform's name of a single model, which means nothing to whoever calls it.
_SINGLE = "model"
_TARGET = "x-amzn-sagemaker-target-model"


class Call(NamedTuple):
    """One decoded request. rows: of its batch, 1 without batching. outputs: name and whether as bytes, in order."""

    inputs: dict[str, Tensor]
    rows: int
    outputs: list[v2.Wanted]
    model: str
    id: str


class Tensors(Handler):
    """An exported graph."""

    task = "tensors"
    speaks_v2 = True

    _config: Triton
    _graph: Graph
    _name: str

    def load(self, model_dir: Path, context: Context) -> None:
        """See Handler. Raises BadArchive, LoadFailed."""
        self._config = read_config(model_dir)
        self._graph = open_graph(model_dir, self._config, context.device)
        self._name = self._config.name if context.name == _SINGLE else context.name
        self._inputs = {spec.name: spec for spec in self._graph.inputs}
        self._outputs = {spec.name: spec for spec in self._graph.outputs}
        self._warned: set[str] = set()
        self.batched = self._config.max_batch_size > 0
        self.weights_bytes = self._graph.weights_bytes
        self.example = _example(self._graph.inputs, self.batched)

    def decode(self, payload: Payload) -> Call:
        """Return the Call in ``payload``. Raises MediaType, BadRequest, BadInput, and ModelNotFound for its version."""
        kind, parameters = media.parse(payload.content_type)
        if kind not in _READ:
            raise MediaType(f"this model reads tensors of the KServe v2 protocol ({', '.join(_READ)}), not {kind}")
        version = parameters.get("version", self._config.version)
        if version != self._config.version:
            raise ModelNotFound(f"model {self._name!r} has no version {version!r}; served is {self._config.version}")
        request = v2.read(payload.body, payload.content_type)
        given = request.inputs if request.raw is None else [self._raw(request.raw)]
        inputs = self._checked(given)
        return Call(
            {name: self._reshaped(tensor) for name, tensor in inputs.items()},
            self._rows(inputs),
            self._wanted(request),
            payload.headers.get(_TARGET) or self._name,
            request.id,
        )

    def size(self, value: Call) -> int:
        """Return the rows of the request's batch."""
        return value.rows

    def predict(self, batch: list[Call]) -> list[v2.Reply]:
        """Return a Reply for each Call; those of the same shapes run together, up to max_batch_size rows."""
        replies: list[v2.Reply | None] = [None] * len(batch)
        for members in self._groups(batch):
            calls = [batch[index] for index in members]
            for index, tensors in zip(members, self._run(calls), strict=True):
                found = {tensor.name: tensor for tensor in tensors}
                call = batch[index]
                outputs = [(found[wanted.name], wanted.binary) for wanted in call.outputs]
                replies[index] = v2.Reply(call.model, self._config.version, outputs, call.id)
        return [reply for reply in replies if reply is not None]

    def encode(self, output: v2.Reply, accept: str) -> Payload:
        """Return ``output`` as JSON, or with binary tensors where they were asked for; ``accept`` has no say in it."""
        return Payload(*v2.write(output))

    # --- requests ----------------------------------------------------------------------------------------------------

    def _raw(self, body: bytes) -> Tensor:
        """The whole body as the only input; its one dimension that is not fixed follows from the size."""
        specs = self._graph.inputs
        if len(specs) != 1:
            raise BadInput(f"a body without JSON can be one input only; this model takes {len(specs)}")
        spec = specs[0]
        dims = [1, *spec.dims] if self.batched else list(spec.dims)
        if spec.datatype == "BYTES":
            data = np.empty(1, object)
            data[0] = body
            return Tensor(spec.name, "BYTES", (1,) * len(dims), v2_binary.shaped(spec.name, data, (1,) * len(dims)))
        free = [place for place, size in enumerate(dims) if size < 0]
        item_bytes = (dtypes.item_bytes(spec.datatype) or 1) * math.prod(size for size in dims if size >= 0)
        if len(free) > 1 or (free and (item_bytes == 0 or len(body) % item_bytes)):
            raise BadInput(f"{len(body)} bytes do not tell the shape of {spec.name!r}, {spec.datatype} {spec.dims}")
        for place in free:
            dims[place] = len(body) // item_bytes
        return Tensor(
            spec.name, spec.datatype, tuple(dims), v2_binary.read(spec.name, memoryview(body), spec.datatype, dims)
        )

    def _checked(self, given: list[Tensor]) -> dict[str, Tensor]:
        """``given`` by name, each as config.pbtxt declares it. Raises BadInput."""
        specs = self._inputs
        inputs = {tensor.name: tensor for tensor in given}
        unknown = [name for name in inputs if name not in specs]
        missing = [name for name, spec in specs.items() if name not in inputs and not spec.optional]
        if unknown or missing:
            what = f"unknown input {unknown[0]!r}" if unknown else f"input {missing[0]!r} is missing"
            raise BadInput(f"{what}; this model takes {', '.join(specs)}")
        for name, tensor in inputs.items():
            spec = specs[name]
            if tensor.datatype != spec.datatype:
                raise BadInput(f"input {name!r} is {tensor.datatype}; the model takes {spec.datatype}")
            sizes = tensor.shape[1:] if self.batched else tensor.shape
            if (self.batched and not tensor.shape) or not _fits(sizes, spec.dims):
                expected = ["batch", *spec.dims] if self.batched else spec.dims
                raise BadInput(f"input {name!r} has shape {list(tensor.shape)}; the model takes {expected} (-1: any)")
        return inputs

    def _rows(self, inputs: dict[str, Tensor]) -> int:
        if not self.batched:
            return 1
        rows = {tensor.shape[0] for tensor in inputs.values()}
        if len(rows) != 1 or not 1 <= min(rows) <= self._config.max_batch_size:
            raise BadInput(
                f"the inputs have {' and '.join(map(str, sorted(rows))) or 'no'} rows; all must have as many, "
                f"from 1 to max_batch_size, {self._config.max_batch_size}"
            )
        return rows.pop()

    def _reshaped(self, tensor: Tensor) -> Tensor:
        spec = self._inputs[tensor.name]
        if spec.reshape is None:
            return tensor
        shape = (*tensor.shape[:1], *spec.reshape) if self.batched else tuple(spec.reshape)
        data = v2_binary.shaped(tensor.name, tensor.data, shape)
        return tensor._replace(shape=data.shape, data=data)

    def _wanted(self, request: v2.Request) -> list[v2.Wanted]:
        names = list(self._outputs)
        if request.outputs is None:
            return [v2.Wanted(name, request.binary) for name in names]
        for wanted in request.outputs:
            if wanted.name not in names:
                raise BadInput(f"unknown output {wanted.name!r}; this model has {', '.join(names)}")
        return request.outputs

    # --- runs --------------------------------------------------------------------------------------------------------

    def _groups(self, batch: list[Call]) -> list[list[int]]:
        """Indices of calls that run together: alike in all but their rows, and no more rows than max_batch_size."""
        if not self.batched:
            return [[index] for index in range(len(batch))]
        groups: list[list[int]] = []
        open_groups: dict[tuple[Any, ...], list[int]] = {}
        rows: dict[tuple[Any, ...], int] = defaultdict(int)
        for index, call in enumerate(batch):
            key = tuple((name, tensor.datatype, tensor.shape[1:]) for name, tensor in sorted(call.inputs.items()))
            if key not in open_groups or rows[key] + call.rows > self._config.max_batch_size:
                open_groups[key] = []
                rows[key] = 0
                groups.append(open_groups[key])
            open_groups[key].append(index)
            rows[key] += call.rows
        return groups

    def _run(self, calls: list[Call]) -> list[list[Tensor]]:
        """One run of the graph: the outputs of each of ``calls``."""
        if len(calls) == 1:
            return [[self._seen(tensor) for tensor in self._graph.run(calls[0].inputs)]]
        joined = {}
        for name, first in calls[0].inputs.items():
            data = np.concatenate([call.inputs[name].data for call in calls])
            joined[name] = Tensor(name, first.datatype, data.shape, data)
        total = sum(call.rows for call in calls)
        parts: list[list[Tensor]] = [[] for _ in calls]
        for tensor in map(self._seen, self._graph.run(joined)):
            if not tensor.shape or tensor.shape[0] != total:
                raise BadAnswer(
                    f"output {tensor.name!r} has shape {list(tensor.shape)} for {total} rows, so requests cannot share "
                    "a run; write max_batch_size: 0 into config.pbtxt"
                )
            start = 0
            for part, call in zip(parts, calls, strict=True):
                data = tensor.data[start : start + call.rows]
                part.append(tensor._replace(shape=data.shape, data=data))
                start += call.rows
        return parts

    def _seen(self, tensor: Tensor) -> Tensor:
        """``tensor``, in the declared shape where config.pbtxt reshapes it; a difference is logged once."""
        spec = self._outputs[tensor.name]
        if spec.reshape is not None and all(size >= 0 for size in spec.dims):
            shape = (*tensor.shape[:1], *spec.dims) if self.batched else tuple(spec.dims)
            if math.prod(shape) == math.prod(tensor.shape):
                return tensor._replace(shape=shape, data=tensor.data.reshape(shape))
        sizes = tensor.shape[1:] if self.batched else tensor.shape
        if tensor.name not in self._warned and (tensor.datatype != spec.datatype or not _fits(sizes, spec.dims)):
            self._warned.add(tensor.name)
            _log.warning(
                "output %s is %s %s where config.pbtxt declares %s %s; it is sent as it is",
                *(tensor.name, tensor.datatype, list(sizes), spec.datatype, spec.dims),
            )
        return tensor


def _fits(sizes: tuple[int, ...], dims: list[int]) -> bool:
    return len(sizes) == len(dims) and all(want in (-1, size) for size, want in zip(sizes, dims, strict=True))


def _example(specs: Iterable[TensorSpec], batched: bool) -> Payload:
    """Zeros in every input, dimensions that are free 1; texts are empty."""
    inputs: list[Tensor] = []
    for each in specs:
        shape = tuple(1 if size < 0 else size for size in ([1, *each.dims] if batched else each.dims))
        text = each.datatype == "BYTES"
        data = np.full(shape, b"", object) if text else np.zeros(shape, dtypes.to_numpy(each.datatype))
        inputs.append(Tensor(each.name, each.datatype, shape, data))
    return Payload(*v2.write_request(inputs))
