"""config.json as the frozen values that a network's function reads, and nothing else of it.

Unknown keys are ignored: transformers writes many that change no number at inference. A key that would change one and
that the function does not know is refused as Unsupported, and the caller serves the model through transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from container.errors import BadArchive

MOST_LAYERS = 2048
#: Of a file that is read as a whole, as transformers does, too: more than any configuration has.
_MAX_BYTES = 32 << 20

#: A size that config.json gives; 0 would divide by nothing.
Size = Annotated[int, msgspec.Meta(ge=1)]
#: Of layers, each of which costs memory before a weight is looked at; ten times what the deepest networks have.
Layers = Annotated[int, msgspec.Meta(ge=0, le=MOST_LAYERS)]

C = TypeVar("C", bound=msgspec.Struct)


class Unsupported(Exception):
    """The function of this family does not do what config.json or the weights ask for; transformers' class may."""


def fields(model_dir: Path, name: str = "config.json") -> dict[str, Any]:
    """Return the JSON object in ``model_dir / name``, {} if there is no such file; config.json must be there.

    Raises BadArchive.
    """
    try:
        size = (model_dir / name).stat().st_size
        raw = (model_dir / name).read_bytes() if size <= _MAX_BYTES else b""
    except FileNotFoundError as error:
        if name == "config.json":
            raise BadArchive(f"no config.json in the model's folder {model_dir.name!r}") from error
        return {}
    if size > _MAX_BYTES:
        raise BadArchive(f"{name} has {size} bytes, too many for what it should be")
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadArchive(f"{name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadArchive(f"{name} holds a {type(found).__name__}; it must be one JSON object")
    return found


def build(found: Mapping[str, Any], kind: type[C], aliases: Mapping[str, str] | None = None) -> C:
    """Return ``kind`` from the keys of config.json that it has, ``aliases`` (other name -> ours) translated.

    Raises BadArchive for a value of the wrong type, Unsupported for weights that are quantised or pruned, and for a
    network that brings its own code, whatever family it calls itself.
    """
    if found.get("auto_map"):
        raise Unsupported("a network with code of its own")
    if found.get("quantization_config"):
        raise Unsupported("quantised weights")
    if found.get("pruned_heads"):
        raise Unsupported("pruned heads")
    named = {ours: found[other] for other, ours in (aliases or {}).items() if other in found} | dict(found)
    try:
        return msgspec.convert(named, kind)
    except msgspec.ValidationError as error:
        raise BadArchive(f"config.json: {error}") from error


def labels(found: Mapping[str, Any]) -> list[str]:
    """Return the class names by index, as ``id2label`` gives them, else LABEL_0, LABEL_1, ... (two if nothing is said).

    Raises BadArchive when ``id2label`` is not an object from "0", "1", ... to names.
    """
    given = found.get("id2label")
    try:
        if not given:
            return [f"LABEL_{index}" for index in range(int(found.get("num_labels") or 2))]
        return [str(given[str(index)]) for index in range(len(given))]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadArchive('config.json: id2label must map "0", "1", ... to names, without gaps') from error
