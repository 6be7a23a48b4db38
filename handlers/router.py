"""Several tasks in one archive: the request says which, and that task's handler does the rest.

    {"process": "summarization", "inputs": "..."}     by the field ``process``, or ``task``
    X-Amzn-SageMaker-Custom-Attributes: task=digits   by header, for bodies that are no JSON

A task is called by the name of its folder, or by that of its task if no other folder has it; case, dashes and
underscores do not matter. ``{"options": {"selector": "kind"}}`` in berth.json gives the field another name. A built-in
task may also be asked with ``input`` in place of ``inputs``. Requests of one batch go to their tasks in groups.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from container.errors import BadAnswer, BadInput, BadRequest
from container.handler import Claim, Handler, Parts, Ready
from container.payload import JSON, Payload
from container.protocol import codecs, media
from handlers.body import shown
from handlers.steps import outcome

SELECTORS = ("process", "task")


class Member(NamedTuple):
    """One task. plain: it reads its requests with ``handlers/body``, so they may be put right; else they go as sent."""

    handler: Handler
    plain: bool


class Routed(NamedTuple):
    """A value on its way to, or an output on its way from, the task of ``name``."""

    name: str
    value: Any


class Router(Handler):
    """Members by the names of their folders. names: how a request may call them, as ``spoken`` makes it."""

    task = "router"

    def __init__(self, members: Mapping[str, Member], names: Mapping[str, str], selector: str = "") -> None:
        self._members = members
        self._names = names
        self._selectors = (selector, *SELECTORS) if selector and selector not in SELECTORS else SELECTORS
        self.reentrant = all(member.handler.reentrant for member in members.values())
        self.example = next(
            (found for name, member in members.items() if (found := self._example(name, member)) is not None),
            Handler.example,
        )

    def decode(self, payload: Payload) -> Routed:
        """Return the input of the task that is asked. Raises BadInput naming the tasks, and what the task raises."""
        fields = self._fields(payload)
        name = self._chosen(payload, fields)
        member = self._members[name]
        if fields is not None and member.plain:
            rest = {key: value for key, value in fields.items() if key not in self._selectors}
            if "input" in rest and "inputs" not in rest:
                rest["inputs"] = rest.pop("input")
            payload = msgspec.structs.replace(payload, body=msgspec.json.encode(rest), content_type=JSON)
        return Routed(name, member.handler.decode(payload))

    def size(self, value: Routed) -> int:
        """Return what the task says."""
        return self._members[value.name].handler.size(value.value)

    def predict(self, batch: list[Routed]) -> list[Any]:
        """Return each task's outputs, in order."""
        return outcome(self.steps(batch))

    def steps(self, batch: list[Routed]) -> Iterator[list[Any] | Parts | Ready | Claim | None]:
        """Take the steps of one task after the other; what they yield is told by its place in ``batch``."""
        outputs: list[Any] = [None] * len(batch)
        for name, places in self._groups(batch):
            handler = self._members[name].handler
            found: list[Any] | None = None
            for step in handler.steps([batch[place].value for place in places]):
                if isinstance(step, Parts):
                    yield Parts({places[index]: piece for index, piece in step.items()})
                elif isinstance(step, Ready):
                    yield Ready({places[index]: _routed(name, output) for index, output in step.items()})
                elif step is None or isinstance(step, Claim):
                    if step is not None:
                        step.move(dict(enumerate(places)))
                    yield step
                else:
                    found = list(step)
                    break
            if found is None or len(found) != len(places):
                count = "no" if found is None else len(found)
                raise BadAnswer(f"task {name} gave {count} outputs for {len(places)} inputs")
            for place, output in zip(places, found, strict=True):
                outputs[place] = _routed(name, output)
        yield outputs

    def encode(self, output: Routed, accept: str) -> Payload:
        """Return what the task makes of its output."""
        return self._members[output.name].handler.encode(output.value, accept)

    def _groups(self, batch: Sequence[Routed]) -> Iterator[tuple[str, list[int]]]:
        """Yield (task, places in ``batch``); one place at a time for a task that takes no batches."""
        groups: dict[str, list[int]] = {}
        for place, routed in enumerate(batch):
            groups.setdefault(routed.name, []).append(place)
        for name, places in groups.items():
            if self._members[name].handler.batched:
                yield name, places
            else:
                yield from ((name, [place]) for place in places)

    def _fields(self, payload: Payload) -> dict[str, Any] | None:
        """The members of a JSON object, None for every other body."""
        if media.parse(payload.content_type).type != JSON:
            return None
        try:
            value = codecs.decode(payload.body, payload.content_type)
        except BadRequest:
            if any(name in self._attributes(payload) for name in self._selectors):
                return None  # the task reads it as it likes
            raise
        return value if isinstance(value, dict) else None

    def _chosen(self, payload: Payload, fields: dict[str, Any] | None) -> str:
        asked: Any = None
        for source in (fields or {}, self._attributes(payload)):
            asked = next((source[name] for name in self._selectors if name in source), None)
            if asked is not None:
                break
        how = (
            f"name one in the field {' or '.join(self._selectors)}, or in X-Amzn-SageMaker-Custom-Attributes: task=..."
        )
        known = f"this model has the tasks {', '.join(self._members)}"
        if asked is None:
            raise BadInput(f"no task is named; {known}: {how}")
        name = self._names.get(_spoken(asked)) if isinstance(asked, str) else None
        if name is None:
            raise BadInput(f"there is no task called {shown(asked)}; {known}: {how}")
        return name

    @staticmethod
    def _attributes(payload: Payload) -> dict[str, str]:
        """``k=v;k2=v2``, as DJL reads custom attributes; commas do, too."""
        pairs = (part.partition("=") for part in re.split(r"[;,]", payload.attributes))
        return {key.strip(): value.strip() for key, equals, value in pairs if equals}

    def _example(self, name: str, member: Member) -> Payload | None:
        example = member.handler.example
        if example is Handler.example:
            return None
        if media.parse(example.content_type).type != JSON:
            return msgspec.structs.replace(example, attributes=f"task={name}")
        value = msgspec.json.decode(example.body)
        if not isinstance(value, dict):
            return msgspec.structs.replace(example, attributes=f"task={name}")
        return msgspec.structs.replace(example, body=msgspec.json.encode({self._selectors[0]: name, **value}))


def _routed(name: str, output: Any) -> Any:
    """Errors and Payloads are told as they are; everything else is for the task's encode."""
    return output if isinstance(output, (Exception, Payload)) else Routed(name, output)


def _spoken(name: str) -> str:
    """As ``archive/tasks.spoken``, which a handler does not import."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")
