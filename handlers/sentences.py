"""A folder in the layout of sentence-transformers, as the recipe of a vector: prompt, network, pooling, normalising.

    modules.json                        which modules, in order; done here: Transformer, Pooling, Normalize
    1_Pooling/config.json               the way of pooling, and whether the prompt's own tokens count (include_prompt)
    config_sentence_transformers.json   prompts by name, and the one that is used where a request names none

Whatever else a folder asks for is refused when it is loaded: a vector that is a little wrong looks like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from container.errors import BadArchive, BadInput
from container.nets.config import fields

Pooling = Literal["mean", "cls", "max", "none"]

_PROMPTS = "config_sentence_transformers.json"
_WAYS: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "max": "max"}


class Recipe(NamedTuple):
    """What a folder says of making a vector.

    network: where the network lies. prompts: by name; prompt: the text before every input, unless a request chooses
    another. include_prompt: whether its tokens are pooled, too.
    """

    network: Path
    pooling: Pooling = "mean"
    normalize: bool = False
    prompts: Mapping[str, str] = {}
    prompt: str = ""
    include_prompt: bool = True

    def chosen(self, name: str | None, text: str | None) -> str:
        """Return the prompt of a request that gives its ``name``, or its ``text``. Raises BadInput."""
        if text is not None:
            if name is not None:
                raise BadInput("parameters prompt and prompt_name are both given; one of them is enough")
            return text
        if name is None:
            return self.prompt
        if name not in self.prompts:
            known = ", ".join(sorted(self.prompts)) or "none"
            raise BadInput(f"parameter prompt_name is {name!r}; the prompts of this model: {known}")
        return self.prompts[name]


class _Module(msgspec.Struct):
    type: str
    path: str = ""


class _Prompts(msgspec.Struct):
    prompts: dict[str, str] | None = None
    default_prompt_name: str | None = None


def recipe(model_dir: Path) -> Recipe:
    """Return the Recipe of the folder, the default without modules.json. Raises BadArchive for what is not done."""
    found = _prompted(Recipe(model_dir), fields(model_dir, _PROMPTS))
    try:
        modules = msgspec.json.decode((model_dir / "modules.json").read_bytes(), type=list[_Module])
    except FileNotFoundError:
        return found
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadArchive(f"modules.json cannot be read: {error}") from error
    for module in modules:
        kind = module.type.rpartition(".")[2]
        if Path(module.path).is_absolute() or ".." in Path(module.path).parts:
            raise BadArchive(f"modules.json names {module.path!r}, which is not inside the model's folder")
        if kind == "Transformer":
            found = found._replace(network=model_dir / module.path)
        elif kind == "Pooling":
            said = fields(model_dir / module.path)
            found = found._replace(pooling=_pooling(said), include_prompt=said.get("include_prompt", True) is not False)
        elif kind == "Normalize":
            found = found._replace(normalize=True)
        else:
            raise BadArchive(
                f"modules.json has a module {module.type}; done here: Transformer, Pooling, Normalize. Serve it by a "
                "code/inference.py that uses sentence-transformers, named in code/requirements.txt"
            )
    return found


def _prompted(found: Recipe, said: dict[str, Any]) -> Recipe:
    try:
        known = msgspec.convert(said, _Prompts)
    except msgspec.ValidationError as error:
        raise BadArchive(f"{_PROMPTS}: {error}") from error
    prompts = known.prompts or {}
    name = known.default_prompt_name
    if name is None:
        return found._replace(prompts=prompts)
    if name not in prompts:
        raise BadArchive(f"{_PROMPTS}: default_prompt_name is {name!r}, which is not among its prompts")
    return found._replace(prompts=prompts, prompt=prompts[name])


def _pooling(found: dict[str, Any]) -> Pooling:
    """The one way of pooling that 1_Pooling/config.json switches on."""
    prefix = "pooling_mode_"
    chosen = [name.removeprefix(prefix) for name in found if name.startswith(prefix) and found[name] is True]
    named = found.get("pooling_mode")
    if named is not None:
        chosen = [str(each) for each in named] if isinstance(named, list) else [str(named)]
    ways = [way.removesuffix("_token").removesuffix("_tokens") for way in chosen]
    if len(ways) != 1 or ways[0] not in _WAYS:
        raise BadArchive(
            f"the Pooling module pools by {' and '.join(chosen) or 'nothing'}; done here, one at a time: "
            f"{', '.join(_WAYS)}"
        )
    return _WAYS[ways[0]]
