"""A folder that is no model, in a sentence: what was looked for, what is there, and the likeliest mistake. Pure."""

from __future__ import annotations

from collections.abc import Callable

from container.archive.tree import Tree

IsModel = Callable[[Tree], bool]

#: Folders further down that are looked into.
_LOOKED_AT = 20


def nothing(tree: Tree, program: str, is_model: IsModel, weights_bytes: int) -> str:
    """Return what was looked for in ``tree``, what is there, and the likeliest mend.

    is_model: says whether a sub-folder is a model. weights_bytes: of the weight files anywhere in it.
    """
    entries = tree.entries()
    more = f" and {len(entries) - 10} more" if len(entries) > 10 else ""
    found = f"found {', '.join(entries[:10])}{more}" if entries else "the folder is empty"
    return (
        f"no model in {tree.folder}: looked for code/{program}, config.json with weights (here or under model/), "
        "config.pbtxt with 1/model.pt, MAR-INF/MANIFEST.json, code/handler.py, an xgboost model, or sub-folders of "
        f"these; {found}{_mend(tree, program, is_model, weights_bytes)}"
    )


def _mend(tree: Tree, program: str, is_model: IsModel, weights_bytes: int) -> str:
    """The likeliest mistake, "" if none is seen."""
    strange = next((name for name in tree.files if "\\" in name), "")
    if strange:
        return f"; {strange!r} is one name with backslashes, from a tool that packs so on Windows: use `berth pack`"
    models = [name for name in tree.folders() if is_model(tree.sub(name))]
    if len(models) > 1:
        others = " and ".join(name for name in tree.folders() if name not in models)
        return f"; {' and '.join(models)} are models, {others} is none: as several tasks, each sub-folder must be one"
    if models:
        return f"; the model is one folder down in {models[0]}: pack with `tar -C {models[0]} -czf model.tar.gz .`"
    for name in (program, "handler.py"):
        if tree.has(name):
            return f"; {name} lies at the root: it belongs into code/"
    scripts = tree.sub("code").named("*.py")
    if scripts:
        return f"; code/ holds {', '.join(scripts[:10])}: name the script {program}, or that name in SAGEMAKER_PROGRAM"
    deep = _deep(tree, program, is_model)
    if deep:
        return f"; the model lies in {_shown(deep)}: pack with `berth pack` or tar from there"
    return _mend_weights(tree, program, weights_bytes)


def _deep(tree: Tree, program: str, is_model: IsModel) -> str:
    """The folder of a model further down, the highest one; "" if none is seen."""
    marks = ("code/inference.py", f"code/{program}", "code/handler.py", "config.pbtxt", "config.json", "xgboost-model")
    ends = tuple(f"/{mark}" for mark in marks)
    homes = {name.removesuffix(end) for name in tree.files for end in ends if name.endswith(end)}
    found = sorted(homes, key=lambda each: each.count("/"))[:_LOOKED_AT]
    return next((home for home in found if is_model(tree.sub(home))), "")


def _shown(path: str) -> str:
    return path if len(path) <= 80 else f"{path[:30]}...{path[-30:]}"


def _mend_weights(tree: Tree, program: str, weights_bytes: int) -> str:
    """What is wrong with weights that lie there without what they need, "" if there are none."""
    packed = tree.named("*.tar.gz", "*.tgz", "*.tar", "*.zip", "*.mar")
    if packed:
        return f"; {packed[0]} is an archive in an archive: pack what is in it"
    for home in (tree, tree.sub("model")):
        if home.has("config.json"):
            foreign = home.named("tf_model.h5", "flax_model.msgpack")
            hint = f"; {foreign[0]} is not PyTorch's: convert it" if foreign else ""
            return f"; config.json has no weights beside it, model.safetensors or pytorch_model.bin{hint}"
    if weights_bytes:
        return f"; there are weights, but no config.json beside them and no code/{program} to load them"
    return ""
