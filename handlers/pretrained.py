"""A network by its transformers class, refused where that class would answer something else than its author saw.

transformers fills tensors that a checkpoint lacks with random numbers and goes on with a warning, drops settings that
its version no longer knows, and knows nothing of networks that brought their own code. Each would be a wrong answer
that looks like any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from container.errors import BadArchive
from container.nets.config import MOST_LAYERS, fields

#: Ways of telling places apart that were dropped with transformers 5, which ignores the setting.
_DROPPED = ("relative_key", "relative_key_query")


def pretrained(auto: str, model_dir: Path, spare: str = "") -> Any:
    """Return the network in ``model_dir``, for answering only, as transformers' class ``auto`` ("AutoModel") makes it.

    spare: part of the names of tensors that the checkpoint may lack, because the task does not use them; "" = none.
    Raises BadArchive for a network that would not compute what its author's did.
    """
    import transformers  # seconds, for these models only

    found = fields(model_dir)
    _known(found, transformers)
    _check_layers(found)
    model, told = getattr(transformers, auto).from_pretrained(
        str(model_dir), local_files_only=True, output_loading_info=True
    )
    missing = sorted(name for name in told["missing_keys"] if not spare or spare not in name)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise BadArchive(
            f"the weights lack {', '.join(missing[:3])}{more}, which {type(model).__name__} needs; were they saved by "
            "another class, or for another task?"
        )
    return model.eval()


def _check_layers(found: dict[str, Any]) -> None:
    """Raise BadArchive for more layers than any network has: transformers builds them before it reads a weight."""
    parts = [found, *(each for each in found.values() if isinstance(each, dict))]
    for name, value in ((name, value) for part in parts for name, value in part.items()):
        numbers = value if isinstance(value, list) else [value]
        if "layer" in name or "depth" in name or "block" in name:
            most = max((number for number in numbers if type(number) is int), default=0)
            if most > MOST_LAYERS and not name.endswith(("_size", "_dim", "_id")):
                raise BadArchive(
                    f"config.json asks for {name} = {most}; networks of up to {MOST_LAYERS} layers are built"
                )


def _known(found: dict[str, Any], transformers: Any) -> None:
    """Raise BadArchive if config.json asks for what this transformers does not compute."""
    names = found.get("architectures") or []
    strange = [name for name in names if isinstance(name, str) and not hasattr(transformers, name)]
    if strange:
        own = ", whose code is its author's own (auto_map)" if found.get("auto_map") else ""
        raise BadArchive(
            f"transformers {transformers.__version__} has no network {strange[0]}{own}; bring the code that builds it: "
            "code/inference.py with model_fn and predict_fn"
        )
    places = found.get("position_embedding_type")
    if places in _DROPPED and int(transformers.__version__.partition(".")[0]) >= 5:
        raise BadArchive(
            f"position_embedding_type is {places!r}, which transformers {transformers.__version__} ignores; name "
            "transformers<5 in code/requirements.txt"
        )
