"""What is known of a model from its folder alone: the Manifest, and how ``berth.json`` is read into it.

Pure: the caller hands in the bytes of files, nothing here opens one (``archive/describe`` does).
Does not cover: whether the code in the archive works; that shows when it is loaded.
"""

from __future__ import annotations

import difflib
from typing import Any, Literal

import msgspec

from container.errors import BadArchive

#: design.md section 4, in the order of detection.
Kind = Literal["script", "folder", "triton", "mar", "handler", "tabular", "tasks"]


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many requests may share one run: at most ``max_size``, waiting at most ``max_delay_ms`` for company."""

    max_size: int = 32
    max_delay_ms: int = 0


class Berth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``berth.json``: all of it optional.

    task: built-in task ("embeddings"); handler: "module:Class" inside ``code/``; dtype: serving dtype of built-in
    networks ("float32", "bfloat16", "float16"); isolation: "own" = a process of its own; pin: never sunk;
    timeout_s: seconds a caller waits at most; warmup: payload that ``berth check`` tries; salt: weights are shared only
    with models of the same salt; options: handed to the handler as they are.
    """

    task: str = ""
    handler: str = ""
    batch: Batch = Batch()
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    isolation: Literal["shared", "own"] = "shared"
    pin: bool = False
    timeout_s: float = 50.0
    warmup: dict[str, Any] | None = None
    salt: str = ""
    options: dict[str, Any] = {}


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output as config.pbtxt declares it: v2 datatype; dims without the batch, -1 = any size."""

    name: str
    datatype: str
    dims: list[int]
    reshape: list[int] | None = None
    optional: bool = False


class Triton(msgspec.Struct, frozen=True):
    """What config.pbtxt and the folders beside it say (``archive/triton``).

    name: the model's own, else its folder's. version: the one that is served. file: its weights, relative to the
    folder. max_batch_size: rows in one run, 0 = the first dimension is no batch. max_delay_ms: wait for company.
    """

    name: str
    version: str
    file: str
    max_batch_size: int = 0
    max_delay_ms: int = 0
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []


class Manifest(msgspec.Struct, frozen=True):
    """One model as ``archive/describe`` found it.

    kind: which layout it is. model_dir: absolute folder the handler is given (weights, config). code_dir: the
    archive's own code, "" if none. program: script or module inside ``code_dir`` ("inference.py"), or
    "module:Class". task: built-in task, "" when the code decides. architectures: from config.json, [] if none.
    weights_bytes: sum of the weight files, the first prediction of the model's size.
    requirements: path of ``code/requirements.txt``, "" if none. settings: ``berth.json`` or its defaults.
    identity: changes when a file of the folder does (newest mtime in ns and total size). triton: of that kind only.
    tasks: of that kind only, the models in the sub-folders by the names of these.
    """

    kind: Kind
    model_dir: str
    code_dir: str = ""
    program: str = ""
    task: str = ""
    architectures: list[str] = []
    weights_bytes: int = 0
    requirements: str = ""
    settings: Berth = Berth()
    identity: str = ""
    triton: Triton | None = None
    tasks: dict[str, Manifest] = {}

    @property
    def brings_code(self) -> bool:
        """Whether loading it runs what its author chose: ``code/``, or a torch.export file, which names functions."""
        exported = self.triton is not None and self.triton.file.endswith(".pt2")
        return bool(self.code_dir) or exported or any(part.brings_code for part in self.tasks.values())


def read_berth_json(raw: bytes) -> Berth:
    """Return ``berth.json``. Raises BadArchive naming the key, and for an unknown one the nearest known name."""
    try:
        fields = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadArchive(f"berth.json is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadArchive('berth.json must hold one JSON object, like {"task": "embeddings"}')
    for where, known, given in (("", Berth, fields), ("batch.", Batch, fields.get("batch"))):
        for key in given if isinstance(given, dict) else ():
            if key not in known.__struct_fields__:
                near = difflib.get_close_matches(key, known.__struct_fields__, n=1)
                hint = f"; did you mean {where}{near[0]}?" if near else f"; known: {', '.join(known.__struct_fields__)}"
                raise BadArchive(f"berth.json has an unknown key {where}{key}{hint}")
    try:
        berth = msgspec.convert(fields, Berth)
    except msgspec.ValidationError as error:
        raise BadArchive(f"berth.json: {error}") from error
    if not 0 < berth.timeout_s <= 3600:
        raise BadArchive(f"berth.json: timeout_s is {berth.timeout_s}; it must be over 0 and at most 3600 seconds")
    if berth.batch.max_size < 1 or berth.batch.max_delay_ms < 0:
        raise BadArchive("berth.json: batch.max_size must be at least 1 and batch.max_delay_ms at least 0")
    return berth
