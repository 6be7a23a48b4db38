"""Is an archive signed by someone we trust: OpenSSF model signing, elliptic-curve keys only.

    model_signing sign key --private-key key.pem --signature MODEL/model.sig MODEL      the team that packs
    BERTH_SIGNATURES=require BERTH_SIGNATURE_KEYS=/etc/berth/keys berth serve           the team that serves

The signature lies at the archive's root and covers every file but itself; files that were not signed count as a
mismatch. Does not cover: certificates and Sigstore identities, which need a network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from container import log
from container.errors import BadArchive

_log = log.get(__name__)

SIGNATURE = "model.sig"
_MAX_TEXT = 300


def check(folder: Path, mode: Literal["off", "warn", "require"], keys: Path | None) -> None:
    """Return if the archive in ``folder`` may be used. Raises BadArchive in mode ``require`` if it may not.

    keys: a public key in PEM, or a folder of them (``*.pem``, ``*.pub``); one that fits is enough.
    """
    if mode == "off":
        return
    problem = _problem(folder, keys)
    if not problem:
        return
    if mode == "require":
        raise BadArchive(f"{problem}; BERTH_SIGNATURES=require takes only archives signed with a known key")
    _log.warning("%s: %s", folder.name, problem)


def _problem(folder: Path, keys: Path | None) -> str:
    """Return what is wrong with the signature, "" if nothing is."""
    signature = folder / SIGNATURE
    if signature.is_symlink() or not signature.is_file():
        return f"the archive has no signature ({SIGNATURE} at its root)"
    try:
        from model_signing import verifying  # 0.4 s of imports, and an extra
    except ImportError:
        return "signatures cannot be checked without the package model-signing (pip install 'berth[signing]')"
    known = _keys(keys)
    if not known:
        return "no public key is known (BERTH_SIGNATURE_KEYS)"
    reasons = [_reason(verifying, folder, signature, key) for key in known]
    return "" if "" in reasons else f"the signature does not hold: {reasons[0]}"


def _reason(verifying: Any, folder: Path, signature: Path, key: Path) -> str:
    """Return why ``signature`` does not hold under ``key``, "" if it does."""
    from cryptography.exceptions import InvalidSignature

    # What the library, its parsers and the files raise on bytes made to harm; a test tries hundreds of them. Anything
    # else is a bug and ends the load, so that no signature holds by accident.
    refusals = (InvalidSignature, ValueError, TypeError, LookupError, AttributeError, RecursionError, OSError)
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=key).verify(folder, signature)
    except refusals as error:
        text = str(error) if isinstance(error, ValueError) else ""
        return f"{type(error).__name__} {text}".strip().replace(str(folder), folder.name)[:_MAX_TEXT]
    return ""


def _keys(keys: Path | None) -> list[Path]:
    if keys is None:
        return []
    if keys.is_dir():
        return sorted(path for path in keys.iterdir() if path.suffix in (".pem", ".pub"))
    return [keys] if keys.is_file() else []
