"""Signed as the OpenSSF's own tool signs, then changed in every way that matters."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing

from container.archive.signatures import SIGNATURE, check
from container.errors import BadArchive


def keys(folder: Path) -> tuple[Path, Path]:
    """A private key and its public one."""
    folder.mkdir(parents=True)
    secret = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / "private", folder / "public.pem"
    private.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public.write_bytes(
        secret.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def sign(model: Path, private: Path) -> None:
    signature = model / SIGNATURE
    config = hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)
    signing.Config().use_elliptic_key_signer(private_key=private).set_hashing_config(config).sign(model, signature)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "inference.py").write_text("x = 1\n")
    (folder / "weights.safetensors").write_bytes(b"w" * 1000)
    return folder


def refusal(model: Path, public: Path) -> str:
    with pytest.raises(BadArchive) as caught:
        check(model, "require", public)
    assert str(model.parent) not in caught.value.message
    return caught.value.message


def test_a_signed_archive_is_taken_with_its_key_or_a_folder_that_holds_it(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    private, public = keys(tmp_path / "ours")
    keys(tmp_path / "theirs")
    (tmp_path / "theirs" / "public.pem").rename(tmp_path / "ours" / "a-first.pem")
    sign(model, private)
    for keys_at in (public, tmp_path / "ours"):
        check(model, "require", keys_at)
        check(model, "warn", keys_at)
    assert caplog.records == []


def test_anything_changed_added_or_removed_breaks_the_signature(model: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path / "ours")
    sign(model, private)
    script = model / "code" / "inference.py"
    script.write_text("x = 2\n")
    assert "does not hold" in refusal(model, public)
    script.write_text("x = 1\n")
    check(model, "require", public)
    for added in ("code/extra.py", "sitecustomize.py", ".hidden", "code/.git"):
        (model / added).write_text("x = 3\n")
        assert "does not hold" in refusal(model, public), added
        (model / added).unlink()
    (model / "weights.safetensors").unlink()
    assert "does not hold" in refusal(model, public)


def test_a_link_in_a_signed_archive_is_refused(model: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path / "ours")
    sign(model, private)
    (tmp_path / "outside.py").write_text("x = 1\n")
    (model / "code" / "inference.py").unlink()
    (model / "code" / "inference.py").symlink_to(tmp_path / "outside.py")
    assert "does not hold" in refusal(model, public)


def test_no_signature_another_key_and_a_signature_that_is_none_are_refused(model: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path / "ours")
    other, _ = keys(tmp_path / "theirs")
    assert "no signature" in refusal(model, public)
    sign(model, other)
    assert "does not hold" in refusal(model, public)
    for rubbish in (b"", b"{}", b"[" * 10_000, b"\0" * 100, b'{"mediaType": 5}'):
        (model / SIGNATURE).write_bytes(rubbish)
        assert "does not hold" in refusal(model, public), rubbish[:20]
    sign(model, private)
    assert "no public key" in refusal(model, tmp_path / "nowhere")
    (model / SIGNATURE).rename(tmp_path / "elsewhere.sig")
    (model / SIGNATURE).symlink_to(tmp_path / "elsewhere.sig")
    assert "no signature" in refusal(model, public)


def test_warn_only_says_and_off_does_not_even_look(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    check(model, "warn", model)
    assert "no signature" in caplog.text
    caplog.clear()
    check(model, "off", None)
    assert caplog.text == ""


def damaged(value: object, dice: random.Random) -> object:
    """``value``, JSON, with something in it replaced, dropped or flipped; what is base64 of JSON is gone into."""
    if isinstance(value, dict) and value and dice.random() < 0.8:
        key = dice.choice(list(value))
        changed = {**value, key: damaged(value[key], dice)}
        return {name: changed[name] for name in changed if name != key} if dice.random() < 0.1 else changed
    if isinstance(value, list) and value and dice.random() < 0.8:
        place = dice.randrange(len(value))
        return [damaged(each, dice) if index == place else each for index, each in enumerate(value)]
    if isinstance(value, str) and dice.random() < 0.8:
        try:
            raw = bytearray(base64.b64decode(value, validate=True))
            return base64.b64encode(json.dumps(damaged(json.loads(raw), dice)).encode()).decode()
        except ValueError:
            return value[:-1] + chr(dice.randrange(1, 0x300))
    return dice.choice([None, 1, -1, 1e300, True, "", "x", "A" * 50, [], {}, [[]], {"a": {}}])


def test_no_damage_to_a_signature_makes_another_archive_hold_or_ends_in_anything_but_a_refusal(
    model: Path, tmp_path: Path
) -> None:
    private, public = keys(tmp_path / "ours")
    sign(model, private)
    good = json.loads((model / SIGNATURE).read_bytes())
    (model / "code" / "inference.py").write_text("x = 2\n")
    dice = random.Random(1)
    for _ in range(300):
        broken = bytearray(json.dumps(damaged(good, dice)).encode())
        if dice.random() < 0.3:
            broken[dice.randrange(len(broken))] = dice.randrange(256)
        (model / SIGNATURE).write_bytes(broken)
        assert "does not hold" in refusal(model, public)
