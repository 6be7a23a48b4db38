"""What a server's owner forbids archives to bring, looked at before a line of an archive's code is imported.

    BERTH_ALLOW_CODE, BERTH_ALLOW_PICKLE    ours
    SAGEMAKER_SECURE_MODE                   the platform's, meant as DJL Serving's secure-mode plugin means it:
                                            SAGEMAKER_SECURITY_CONTROLS names what is forbidden, files are looked for
                                            in models under SAGEMAKER_UNTRUSTED_CHANNELS
    BERTH_SIGNATURES                        ``archive/signatures``

Does not cover: what allowed code does (it may unpickle what it likes, in the process of authors' code), and changes to
the folder after the load.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from container.archive import signatures
from container.archive.manifest import Manifest
from container.errors import BadArchive
from container.settings import Settings

#: What DJL calls pickle files.
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
#: A checkpoint's weights, as transformers names them.
_WEIGHTS = re.compile(r"pytorch_model.*\.bin$")
#: Exported graphs of Triton repositories that are pickles inside a zip.
_PICKLED_GRAPHS = (".pt", ".pt2")


def check(folder: Path, manifest: Manifest, settings: Settings) -> None:
    """Return if the archive in ``folder`` may be loaded. Raises BadArchive naming the variable that forbids it.

    Reads all of the folder where signatures are wanted; call it on a thread.
    """
    for part in manifest.tasks.values():
        _check_one(Path(part.model_dir), part, settings)
    _check_one(folder, manifest, settings)
    signatures.check(folder, settings.signatures, settings.signature_keys)


def _check_one(folder: Path, manifest: Manifest, settings: Settings) -> None:
    """Raise BadArchive if something of one model is forbidden."""
    if manifest.brings_code and not settings.allow_code:
        raise BadArchive("the archive brings its own code and BERTH_ALLOW_CODE=off forbids that")
    if not settings.allow_pickle and manifest.triton is not None and manifest.triton.file.endswith(_PICKLED_GRAPHS):
        raise BadArchive(f"{manifest.triton.file} is a pickle inside and BERTH_ALLOW_PICKLE=off forbids that; use ONNX")
    if not settings.allow_pickle and manifest.kind == "folder":
        _check_checkpoints(Path(manifest.model_dir))
    if settings.secure_mode:
        _check_controls(folder, manifest, settings)


def _check_checkpoints(model_dir: Path) -> None:
    """Raise BadArchive if weights lie here in pickled form only: whoever computes them would open the pickle."""
    pickled = {path.parent: path.name for path in sorted(model_dir.rglob("*.bin")) if _WEIGHTS.match(path.name)}
    for folder, name in pickled.items():
        if not any(folder.glob("*.safetensors")):
            raise BadArchive(
                f"the weights are a pickle ({name}) and BERTH_ALLOW_PICKLE=off forbids that; convert to safetensors"
            )


def _check_controls(folder: Path, manifest: Manifest, settings: Settings) -> None:
    """Raise BadArchive if a control of SageMaker's secure mode forbids something in the archive."""
    controls = settings.security_controls
    if controls & {"DISALLOW_CUSTOM_INFERENCE_SCRIPTS", "DISALLOW_CUSTOM_ENTRYPOINT"} and manifest.brings_code:
        raise _forbidden("its own code", "DISALLOW_CUSTOM_INFERENCE_SCRIPTS")
    if "DISALLOW_REQUIREMENTS_TXT" in controls:
        asked = (folder / "requirements.txt", folder / "code" / "requirements.txt")
        if manifest.requirements or any(path.is_file() for path in asked):
            raise _forbidden("a requirements.txt", "DISALLOW_REQUIREMENTS_TXT")
    if "DISALLOW_TRUST_REMOTE_CODE" in controls and manifest.settings.options.get("trust_remote_code"):
        raise _forbidden("the option trust_remote_code", "DISALLOW_TRUST_REMOTE_CODE")
    if _untrusted(folder, settings.untrusted_channels):
        _check_files(folder, controls)


def _check_files(folder: Path, controls: frozenset[str]) -> None:
    for path in sorted(folder.rglob("*")):
        if "DISALLOW_PICKLE_FILES" in controls and path.suffix.lower() in PICKLES:
            raise _forbidden(f"the pickle {path.name[:100]!r}", "DISALLOW_PICKLE_FILES")
        if "DISALLOW_CHAT_TEMPLATE" in controls and _has_chat_template(path):
            raise _forbidden(f"a chat template ({path.name})", "DISALLOW_CHAT_TEMPLATE")


def _has_chat_template(path: Path) -> bool:
    if path.name.startswith("chat_template."):
        return True
    if path.name != "tokenizer_config.json":
        return False
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadArchive(f"{path.name} cannot be read: {type(error).__name__}") from error
    return isinstance(fields, dict) and "chat_template" in fields


def _untrusted(folder: Path, channels: tuple[Path, ...]) -> bool:
    real = Path(os.path.realpath(folder))
    return any(Path(os.path.realpath(channel)) in (real, *real.parents) for channel in channels)


def _forbidden(what: str, control: str) -> BadArchive:
    return BadArchive(f"the archive brings {what}, which {control} of SAGEMAKER_SECURITY_CONTROLS forbids")
