"""What the owner forbids: each rule by an archive that breaks it and one that does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from container.archive import policy
from container.archive.describe import describe
from container.errors import BadArchive
from container.settings import BadSetting, Settings
from tests.makers import tiny_bert
from tests.server import write_handler

CODE = "from container.handler import Handler\nclass H(Handler):\n    def predict(self, batch):\n        return batch\n"


def verdict(folder: Path, **environ: str) -> str:
    settings = Settings.read({"BERTH_STATE_DIR": "/tmp/unused", **environ})
    try:
        policy.check(folder, describe(folder), settings)
    except BadArchive as error:
        return error.message
    return "fine"


def secure(folder: Path, control: str, channel: Path) -> str:
    return verdict(
        folder,
        SAGEMAKER_SECURE_MODE="true",
        SAGEMAKER_SECURITY_CONTROLS=f"DISALLOW_NOTHING, {control}",
        SAGEMAKER_UNTRUSTED_CHANNELS=f"/opt/none, {channel}",
    )


def test_code_is_loaded_unless_the_owner_says_no(tmp_path: Path) -> None:
    code, plain = write_handler(tmp_path / "code", CODE), tiny_bert(tmp_path / "plain")
    assert verdict(code) == verdict(plain, BERTH_ALLOW_CODE="off") == "fine"
    assert "BERTH_ALLOW_CODE=off" in verdict(code, BERTH_ALLOW_CODE="off")
    assert "its own code" in secure(code, "DISALLOW_CUSTOM_INFERENCE_SCRIPTS", tmp_path / "elsewhere")
    assert secure(code, "DISALLOW_PICKLE_FILES", tmp_path) == "fine"


@pytest.mark.parametrize("place", ["requirements.txt", "code/requirements.txt"])
def test_requirements_are_forbidden_wherever_they_lie(tmp_path: Path, place: str) -> None:
    folder = write_handler(tmp_path / "m", CODE)
    assert secure(folder, "DISALLOW_REQUIREMENTS_TXT", tmp_path) == "fine"
    (folder / place).write_text("torch\n")
    assert "requirements.txt" in secure(folder, "DISALLOW_REQUIREMENTS_TXT", tmp_path)


@pytest.mark.parametrize("name", ["a.bin", "deep/b.PT", "c.pth", "d.ckpt", "e.PKL"])
def test_pickles_are_looked_for_in_untrusted_folders_only(tmp_path: Path, name: str) -> None:
    folder = tiny_bert(tmp_path / "models" / "m" / "model")
    assert secure(folder, "DISALLOW_PICKLE_FILES", tmp_path) == "fine"
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    assert "pickle" in secure(folder, "DISALLOW_PICKLE_FILES", tmp_path / "models")
    assert secure(folder, "DISALLOW_PICKLE_FILES", tmp_path / "mode") == "fine"


def test_a_link_does_not_lead_out_of_an_untrusted_folder(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "real")
    (folder / "a.pt").write_bytes(b"x")
    (tmp_path / "channel").symlink_to(tmp_path)
    assert "pickle" in secure(folder, "DISALLOW_PICKLE_FILES", tmp_path / "channel")


def test_chat_templates_and_remote_code(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "m")
    assert secure(folder, "DISALLOW_CHAT_TEMPLATE", tmp_path) == "fine"
    (folder / "chat_template.jinja").write_text("{{ x }}")
    assert "chat template" in secure(folder, "DISALLOW_CHAT_TEMPLATE", tmp_path)
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ x }}"}')
    assert "chat template" in secure(folder, "DISALLOW_CHAT_TEMPLATE", tmp_path)
    (folder / "tokenizer_config.json").write_text("[" * 100_000)
    assert "cannot be read" in secure(folder, "DISALLOW_CHAT_TEMPLATE", tmp_path)
    (folder / "tokenizer_config.json").unlink()
    (folder / "berth.json").write_text(json.dumps({"options": {"trust_remote_code": True}}))
    assert "trust_remote_code" in secure(folder, "DISALLOW_TRUST_REMOTE_CODE", tmp_path)


def test_without_secure_mode_its_controls_are_not_looked_at(tmp_path: Path) -> None:
    code = write_handler(tmp_path / "code", CODE)
    assert verdict(code, SAGEMAKER_SECURITY_CONTROLS="DISALLOW_CUSTOM_INFERENCE_SCRIPTS") == "fine"


@pytest.mark.parametrize(
    "environ",
    [
        {"SAGEMAKER_SECURE_MODE": "true"},
        {"SAGEMAKER_SECURE_MODE": "true", "SAGEMAKER_SECURITY_CONTROLS": "DISALLOW_PICKLE_FILES"},
        {"SAGEMAKER_SECURE_MODE": "true", "SAGEMAKER_UNTRUSTED_CHANNELS": "/opt/ml/models"},
        {"BERTH_SIGNATURES": "require"},
    ],
)
def test_half_a_policy_is_none_and_the_server_does_not_start(environ: dict[str, str]) -> None:
    with pytest.raises(BadSetting, match="needs"):
        Settings.read({"BERTH_STATE_DIR": "/tmp/unused", **environ})


@pytest.mark.parametrize("act", ["gelu", "mish"])
@pytest.mark.parametrize("place", ["", "0_Transformer"])
def test_pickled_weights_of_folders_are_refused_whoever_would_compute_them(
    tmp_path: Path, place: str, act: str
) -> None:
    """With "mish" the network is transformers', in the process of authors' code: no reader of ours would see it."""
    folder = tiny_bert(tmp_path / "m")
    inner = tiny_bert(folder / place) if place else folder
    config = json.loads((inner / "config.json").read_text())
    (inner / "config.json").write_text(json.dumps({**config, "hidden_act": act}))
    (inner / "pytorch_model.bin").write_bytes(b"a pickle")
    assert verdict(folder, BERTH_ALLOW_PICKLE="off") == "fine"  # safetensors lie beside it and are preferred
    (inner / "model.safetensors").unlink()
    assert verdict(folder) == "fine"
    assert "(pytorch_model.bin) and BERTH_ALLOW_PICKLE=off" in verdict(folder, BERTH_ALLOW_PICKLE="off")


def test_what_allowed_code_opens_is_its_own_affair(tmp_path: Path) -> None:
    folder = write_handler(tmp_path / "m", CODE)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    assert verdict(folder, BERTH_ALLOW_PICKLE="off") == "fine"
