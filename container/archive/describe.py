"""A folder to its Manifest: which kind of model it is, or, if none, what to do about it.

The kinds are tried in the order of design.md section 4. What an archive brings as code wins over what could be guessed
from its weights, and ``berth.json`` over both.
Does not cover: whether code and weights work (that shows at load), and who may read which folder (the engine's check).
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec

from container.archive import mar
from container.archive.architectures import task_named, task_of
from container.archive.manifest import Batch, Berth, Kind, Manifest, Triton, read_berth_json
from container.archive.nothing import nothing
from container.archive.tasks import united
from container.archive.tree import MAX_TEXT_BYTES, Tree
from container.archive.triton import read_config
from container.errors import BadArchive

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.bin", "*.pt", "*.pth", "*.onnx", "*.ubj", "xgboost-model")
#: Weights of a Hugging Face folder, the preferred form first; only one form is loaded.
_CHECKPOINTS = ("*.safetensors", "pytorch_model*.bin")
#: What Trainer leaves beside a checkpoint: not loaded, not counted.
_NO_WEIGHTS = re.compile(r"(optimizer|scheduler|training_args|rng_state\w*|scaler)\.(pt|pth|bin)")
#: One of several files of a checkpoint, by its number and theirs.
_SHARD = re.compile(r"(.+-)\d{5}-of-(\d{5})(\.safetensors|\.bin)")
_MANY_SHARDS = 1000
#: Beginnings of files that hold a tokenizer's words, and bytes that none has.
_VOCABULARIES = ("tokenizer.", "vocab.", "merges.", "sentencepiece.", "spiece.", "added_tokens.")
_VOCABULARY_BYTES = 256 << 20
_LFS = b"version https://git-lfs"
_TASKS: dict[Kind, str] = {"triton": "tensors", "tabular": "tabular"}


class _Found(NamedTuple):
    """A layout that fits: its kind, the sub-folder of the weights, the sub-folder and program of the code."""

    kind: Kind
    home: str = ""
    code: str | None = None
    program: str = ""


def describe(folder: Path, *, program: str = "inference.py", hf_task: str = "", service: str = "") -> Manifest:
    """Return what ``folder`` is. Nothing in it is imported or run.

    program: the script's name in ``code/`` (SAGEMAKER_PROGRAM). hf_task: the task where neither berth.json nor the
    architecture tells one (HF_TASK, ours or the hub's name). service: "/path/file.py:handle" for archives that bring no
    code of their own (SAGEMAKER_HANDLER).
    Raises ModelMissing, or BadArchive saying what was looked for, what is there and the likely mend.
    """
    folder = folder.absolute()
    tree = Tree.walk(folder)
    berth = read_berth_json(tree.read("berth.json")) if tree.has("berth.json") else Berth()
    found = _detect(tree, PurePosixPath(program).name, berth)
    if service and (found is None or found.kind in ("folder", "triton", "tabular", "tasks")) and not berth.task:
        file = PurePosixPath(service.rpartition(":")[0])
        found = _Found("mar", code=str(file.parent), program=service.rpartition("/")[2])
    if found is None:
        raise BadArchive(nothing(tree, program, lambda inside: _is_model(inside, program), _weights_bytes(tree)))
    if found.kind == "tasks":
        parts = {name: _part(folder / name, program) for name in tree.folders()}
        return united(folder, parts, berth if tree.has("berth.json") else None, tree.identity())
    home = tree.sub(found.home)
    architectures = _architectures(tree, found)
    task = task_named(berth.task) or _TASKS.get(found.kind, "")
    if found.kind in ("script", "folder"):
        task = task or task_of(architectures) or task_named(hf_task)
    if found.kind == "folder":
        _check_weights(home)
        _check_texts(home)
        if not task:
            raise BadArchive(
                f"the task of {', '.join(architectures) or 'config.json, which names no architectures,'} is not known; "
                'if a built-in task does it, name that in berth.json, {"task": "summarization"} for instance '
                "(single model: HF_TASK); else bring code/inference.py with model_fn and predict_fn"
            )
    triton = read_config(home.folder) if found.kind == "triton" else None
    requirements = "" if found.code is None else f"{found.code}/requirements.txt".removeprefix("/")
    return Manifest(
        kind=found.kind,
        model_dir=str(home.folder),
        code_dir="" if found.code is None else str(folder / found.code),
        program=found.program,
        task=task,
        architectures=architectures,
        weights_bytes=_weights_bytes(home) if triton is None else home.files[triton.file].size,
        requirements=str(folder / requirements) if requirements and _asks(tree, requirements) else "",
        settings=_settings(home, berth, found.kind, triton),
        identity=tree.identity(),
        triton=triton,
    )


def _part(folder: Path, program: str) -> Manifest:
    """One of several tasks; what is wrong with it is told with its name."""
    try:
        return describe(folder, program=program)
    except BadArchive as error:
        raise BadArchive(f"in {folder.name}/: {error}") from error


# --- the kinds -------------------------------------------------------------------------------------------------------


def _detect(tree: Tree, program: str, berth: Berth) -> _Found | None:
    if berth.handler:
        return _chosen_handler(tree, berth.handler)
    found = _first(tree, program)
    if found is not None:
        return found
    if berth.task and not tree.sub("code").files:
        return _Found("folder", "model" if tree.sub("model").files else "")  # a team's own task with its own weights
    return _tasks(tree, program)


def _chosen_handler(tree: Tree, handler: str) -> _Found:
    service = re.fullmatch(r"((?:code/)?)([^/:]+\.py):\w+", handler)
    if service is not None:  # multi-model-server's way to write it: a file, and its function or class
        folder = next((one for one in (service[1] or "", "code/") if tree.has(one + service[2])), None)
        if folder is None:
            raise BadArchive(f"berth.json: handler is {handler!r}, but {service[2]} is not in the archive")
        return _Found("mar", code=folder.removesuffix("/"), program=handler.rpartition("/")[2])
    module, colon, name = handler.partition(":")
    path = f"code/{module.replace('.', '/')}"
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise BadArchive(f'berth.json: handler is {handler!r}; it must be "module:Class", module being a file in code/')
    if not tree.has(f"{path}.py") and not tree.has(f"{path}/__init__.py"):
        raise BadArchive(f"berth.json: handler is {handler!r}, but {path}.py is not in the archive")
    return _Found("handler", code="code", program=handler)


def _script(tree: Tree, program: str) -> _Found | None:
    for name in (program, "inference.py"):
        if tree.has(f"code/{name}"):
            return _Found("script", code="code", program=name)
    return None


def _folder(tree: Tree, program: str) -> _Found | None:
    if tree.has("code/handler.py") or tree.has("MAR-INF/MANIFEST.json"):
        return None
    for home in ("", "model"):
        inside = tree.sub(home)
        if inside.has("config.json") and inside.named(*_CHECKPOINTS, "*.index.json"):
            scripts = sorted(name for name in tree.sub("code").files if name.endswith(".py"))
            if scripts:  # its author wants it run; weights alone would answer something else
                raise BadArchive(
                    f"code/ holds {', '.join(scripts[:10])} but neither {program} nor handler.py; rename the script, "
                    "or name it in SAGEMAKER_PROGRAM, or remove code/"
                )
            return _Found("folder", home, "code" if tree.has("code/requirements.txt") else None)
    return None


def _triton(tree: Tree, program: str) -> _Found | None:
    for home in ("", *(tree.folders() if len(tree.folders()) == 1 else ())):
        if tree.sub(home).has("config.pbtxt"):
            return _Found("triton", home)
    return None


def _settings(home: Tree, berth: Berth, kind: Kind, triton: Triton | None) -> Berth:
    if triton is not None:
        return _batched(berth, triton)
    return _served(home, berth) if kind == "mar" else berth


def _batched(berth: Berth, triton: Triton) -> Berth:
    """``berth`` with the batching of config.pbtxt, unless it says its own."""
    if triton.max_batch_size == 0 or berth.batch != Batch():
        return berth
    return msgspec.structs.replace(berth, batch=Batch(triton.max_batch_size, triton.max_delay_ms))


def _mar(tree: Tree, program: str) -> _Found | None:
    for home in ("", *(tree.folders() if len(tree.folders()) == 1 else ())):
        inside = tree.sub(home)
        if inside.has(mar.MANIFEST):
            handler = mar.model_of(mar.read_manifest(inside.read(mar.MANIFEST))).get("handler")
            if not isinstance(handler, str) or not handler:
                raise BadArchive(f'{mar.MANIFEST} names no model.handler, like "handler": "service.py:handle"')
            return _Found("mar", home, home, handler)
    return None


def _served(tree: Tree, berth: Berth) -> Berth:
    """The settings of a service's archive, with what its own files say of batches and time."""
    manifest = mar.read_manifest(tree.read(mar.MANIFEST)) if tree.has(mar.MANIFEST) else {}
    name = mar.config_name(manifest)
    return mar.settings_of(berth, manifest, mar.read_config(tree.read(name), name) if tree.has(name) else {})


def _handler(tree: Tree, program: str) -> _Found | None:
    return _Found("handler", code="code", program="handler.py") if tree.has("code/handler.py") else None


def _tabular(tree: Tree, program: str) -> _Found | None:
    models = tree.named("xgboost-model", "*.ubj") or [
        name for name in tree.named("*.json") if b'"learner"' in tree.head(name, 4096)
    ]
    return _Found("tabular") if models else None


def _tasks(tree: Tree, program: str) -> _Found | None:
    names = tree.folders()
    return _Found("tasks") if len(names) > 1 and all(_is_model(tree.sub(name), program) for name in names) else None


#: design.md section 4, without the last, which looks for these in sub-folders.
_DETECTORS: tuple[Callable[[Tree, str], _Found | None], ...] = (_script, _folder, _triton, _mar, _handler, _tabular)


def _first(tree: Tree, program: str) -> _Found | None:
    return next((found for detector in _DETECTORS if (found := detector(tree, program)) is not None), None)


def _is_model(tree: Tree, program: str) -> bool:
    """Say whether a sub-folder is one model; several tasks in it do not count."""
    if tree.has("berth.json") and read_berth_json(tree.read("berth.json")).handler:
        return True
    return _first(tree, program) is not None


# --- what is in the files --------------------------------------------------------------------------------------------


def _json(tree: Tree, name: str) -> dict[str, Any]:
    try:
        fields = json.loads(tree.read(name))  # not msgspec: transformers writes Infinity into some configs
    except (ValueError, RecursionError) as error:
        raise BadArchive(f"{name} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadArchive(f"{name} must hold one JSON object")
    return fields


def _architectures(tree: Tree, found: _Found) -> list[str]:
    """The networks that config.json names; that of a script may be anything of its author's."""
    homes = [found.home] if found.kind == "folder" else ["", "model"] if found.kind == "script" else []
    for home in homes:
        inside = tree.sub(home)
        if inside.has("config.json"):
            try:
                names = _json(inside, "config.json").get("architectures") or []
            except BadArchive:
                if found.kind == "folder":
                    raise
                return []
            return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return []


def _check_weights(home: Tree) -> None:
    if home.has("adapter_config.json"):
        raise BadArchive(
            "adapter_config.json is a LoRA adapter's, which would be left out; merge it into the weights "
            "(merge_and_unload, save_pretrained) before packing, or bring code/inference.py"
        )
    for name in home.named("*.safetensors.index.json", "*.bin.index.json"):
        shards = _json(home, name).get("weight_map")
        missing = sorted({str(each) for each in shards.values()} - set(home.files)) if isinstance(shards, dict) else []
        if missing:
            raise BadArchive(f"{name} names weights that are not in the archive: {', '.join(missing[:10])}")
    for name in home.named(*_CHECKPOINTS):
        part = _SHARD.fullmatch(name)
        if part is not None:
            wanted = [f"{part[1]}{number:05d}-of-{part[2]}{part[3]}" for number in range(1, int(part[2]) + 1)]
            missing = [each for each in wanted if not home.has(each)]
            if missing and int(part[2]) < _MANY_SHARDS:
                raise BadArchive(f"{name} is one of {int(part[2])} files, {missing[0]} is not in the archive")
        if home.files[name].size == 0:
            raise BadArchive(f"{name} is empty")
        if home.files[name].size < 1024 and home.head(name, len(_LFS)) == _LFS:
            raise BadArchive(f"{name} is a git-lfs pointer, not the weights; run `git lfs pull` before packing")


def _check_texts(home: Tree) -> None:
    """Raise BadArchive for a text that nobody wrote: what loads the model would read it into memory as a whole."""
    for name in home.named("*.json", "*.txt", "*.jinja", "*.model"):
        most = _VOCABULARY_BYTES if name.startswith(_VOCABULARIES) else MAX_TEXT_BYTES
        if home.files[name].size > most:
            raise BadArchive(f"{name} has {home.files[name].size} bytes, too many for what it should be")


def _weights_bytes(home: Tree) -> int:
    """Bytes of the weight files in the one form that is there, safetensors before the others; wherever they lie."""
    sized = [(name.rpartition("/")[2], leaf.size) for name, leaf in home.files.items()]
    for pattern in _WEIGHTS:
        sizes = [size for name, size in sized if fnmatch.fnmatchcase(name, pattern) and not _NO_WEIGHTS.fullmatch(name)]
        if sizes:
            return sum(sizes)
    return 0


def _asks(tree: Tree, requirements: str) -> bool:
    """Say whether the file is there and asks for anything: an environment of its own is dear."""
    if not tree.has(requirements):
        return False
    lines = tree.read(requirements).splitlines()
    return any(line.strip() and not line.strip().startswith(b"#") for line in lines)
