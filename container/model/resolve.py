"""From a Manifest to the Handler that serves it: the only place where handlers are reached, and by name only.

The tables hold strings, so knowing a task costs nothing until a model of it is loaded. A package installed beside berth
adds tasks with the entry point group ``berth.handlers`` (``my_task = "my_package.my_module:MyHandler"``).
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from container.archive import tasks
from container.archive.manifest import Manifest
from container.errors import BadArchive, ServingError
from container.handler import Handler
from container.model.functions import ScriptHandler
from container.model.imports import Namespace
from container.model.services import ServiceHandler

Place = Literal["engine", "guests", "own"]

#: task -> "module:Class" of its handler.
TASKS = {
    "embeddings": "handlers.embeddings:Embeddings",
    "text_generation": "handlers.text_generation:TextGeneration",
    "image_classification": "handlers.image_classification:ImageClassification",
    "text_classification": "handlers.text_classification:TextClassification",
    "summarization": "handlers.summarization:Summarization",
    "tabular": "handlers.tabular:Tabular",
    "tensors": "handlers.tensors:Tensors",
}
#: Architecture -> the task whose handler computes it with a network of ours, without its transformers class.
NATIVE = {
    "BertModel": "embeddings",
    "BertForMaskedLM": "embeddings",
    "BertForPreTraining": "embeddings",
    "BertForSequenceClassification": "text_classification",
    "GPT2Model": "text_generation",
    "GPT2LMHeadModel": "text_generation",
    "ResNetModel": "image_classification",
    "ResNetForImageClassification": "image_classification",
}
GROUP = "berth.handlers"
_NO_CLASS = "; derive its class from that, or name the file inference.py if it has model_fn and predict_fn"
#: What chooses among the tasks of one archive; made with their handlers, so it is no task itself.
ROUTER = "handlers.router"


def place_of(manifest: Manifest) -> Place:
    """Return where a model runs.

    engine: nothing of its author's runs and the network is one of ours. own: a process of its own was asked for, or an
    environment is needed. guests: the child that archives share, also for networks that transformers computes.
    """
    if manifest.settings.isolation == "own" or manifest.requirements:
        return "own"
    return "engine" if manifest.kind == "folder" and _natively(manifest) else "guests"


def _natively(manifest: Manifest) -> bool:
    """Whether a network of ours computes the folder: its class by the table, its configuration by the handler."""
    if not manifest.architectures or any(NATIVE.get(name) != manifest.task for name in manifest.architectures):
        return False
    native = getattr(_task_class(manifest.task), "native", None)
    try:
        return native is None or bool(native(Path(manifest.model_dir)))
    except ServingError:
        return True  # a folder that is wrong is refused by its load, with the reason


def resolve(manifest: Manifest, namespace: Namespace | None) -> Handler:
    """Return the handler of ``manifest``, not loaded yet; ``namespace`` holds its own code, if it has any.

    Raises BadArchive for what is missing or not known, and whatever the archive's modules raise when imported.
    """
    if manifest.kind in ("folder", "tabular", "triton"):
        return _task_class(manifest.task)()
    if manifest.kind in ("script", "handler", "mar"):
        assert namespace is not None, f"a {manifest.kind} has code"
        if manifest.kind == "mar":
            return ServiceHandler(manifest.program, namespace)
        if manifest.kind == "handler":
            return _own_class(manifest.program, namespace)()
        stock = partial(_stock, manifest.task) if manifest.architectures else None
        return ScriptHandler(namespace.load(manifest.program), stock)
    raise BadArchive(f"archives of kind {manifest.kind} are recognised but not served yet")


def combine(manifest: Manifest, handlers: Mapping[str, Handler]) -> Handler:
    """Return the handler of an archive with several tasks; ``handlers``: those of its parts, loaded, by their names."""
    router: Any = importlib.import_module(ROUTER)
    members = {
        name: router.Member(handler, manifest.tasks[name].kind in ("folder", "tabular"))
        for name, handler in handlers.items()
    }
    selector = manifest.settings.options.get("selector", "")
    if not isinstance(selector, str):
        raise BadArchive(f"berth.json: options.selector is {selector!r}; it must be the name of a field")
    made: Handler = router.Router(members, tasks.names(manifest.tasks), selector)
    return made


def _stock(task: str) -> Handler:
    return _task_class(task)()


def _task_class(task: str) -> type[Handler]:
    target = TASKS.get(task)
    if target is not None:
        module, _, name = target.partition(":")
        found = getattr(importlib.import_module(module), name)
    else:
        added = {entry.name: entry for entry in entry_points(group=GROUP)}
        if task not in added:
            known = sorted({*TASKS, *added})
            near = difflib.get_close_matches(task, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise BadArchive(f"no handler for task {task!r}; {hint}known: {', '.join(known)}")
        target = added[task].value
        found = added[task].load()
    if not (isinstance(found, type) and issubclass(found, Handler)):
        raise BadArchive(f"{target}, the handler of task {task!r}, is not a subclass of container.handler.Handler")
    return found


def _own_class(program: str, namespace: Namespace) -> type[Handler]:
    """The archive's handler class: the one named ("module:Class"), else the only one its module offers."""
    file, _, name = (program or "handler.py").partition(":")
    module = namespace.load(file)
    if name:
        found = getattr(module, name, None)
        if isinstance(found, type) and issubclass(found, Handler):
            return found
        what = "has no" if found is None else "holds something that is not a subclass of container.handler.Handler as"
        raise BadArchive(f"{file} {what} {name}")
    classes = _handlers_in(module, namespace.root)
    if len(classes) != 1:
        names = ", ".join(sorted(each.__name__ for each in classes))
        raise BadArchive(
            f"{file} has {'several subclasses' if classes else 'no subclass'} of container.handler.Handler"
            + (f" ({names}); name one in berth.json, " + '{"handler": "handler:NAME"}' if classes else _NO_CLASS)
        )
    return classes[0]


def _handlers_in(module: ModuleType, root: str) -> list[type[Handler]]:
    """The archive's own handler classes that ``module`` names, without those that only serve as another's base."""
    own = {
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Handler) and value.__module__.startswith(f"{root}.")
    }
    return [each for each in own if not any(other is not each and issubclass(other, each) for other in own)]
