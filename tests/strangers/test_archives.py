"""Archives from strangers where the server unpacks them itself, and folders with weights that lie or carry code."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import time
from pathlib import Path

import pytest
import torch

from tests.makers import tiny_bert
from tests.server import Server, running, write_handler
from tests.strangers.clean import PLANTED, assert_clean
from tests.strangers.conftest import FINE
from tests.strangers.test_bodies import Marks


def packed(*members: tuple[str, bytes, bytes, str]) -> bytes:
    """A tar.gz of a good handler and ``members``: name, type, data, link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, kind, data, link in (("code/handler.py", tarfile.REGTYPE, FINE.encode(), ""), *members):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def hostile() -> dict[str, bytes]:
    reg, sym, hard = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
    good = packed()
    zeros = io.BytesIO()
    with gzip.GzipFile(fileobj=zeros, mode="w", compresslevel=9) as file:
        for _ in range(200):
            file.write(b"\0" * (1 << 20))
    return {
        "climbs": packed(("../../escaped", reg, b"x", "")),
        "absolute": packed(("/tmp/berth-stranger-was-here", reg, b"x", "")),
        "symlink-out": packed(("etc", sym, b"", "/etc"), ("etc/berth-stranger", reg, b"x", "")),
        "symlink-in": packed(("again.py", sym, b"", "code/handler.py")),
        "hard-link": packed(("again.py", hard, b"", "code/handler.py")),
        "hard-link-out": packed(("passwd", hard, b"", "/etc/passwd")),
        "device": packed(("zero", tarfile.CHRTYPE, b"", "")),
        "fifo": packed(("pipe", tarfile.FIFOTYPE, b"", "")),
        "twice": packed(("code/handler.py", reg, b"import os\n", "")),
        "newline": packed(("a\nb", reg, b"x", "")),
        "escape-codes": packed(("\x1b[2Ja", reg, b"x", "")),
        "long": packed(("x" * 5000, reg, b"x", "")),
        "deep": packed(("/".join("d" * 200), reg, b"x", "")),
        "zeros": zeros.getvalue(),
        "truncated": good[: len(good) // 2],
        "wrong-checksum": good[:-8] + b"\0\0\0\0" + good[-4:],
        "zip": b"PK\x03\x04" + b"\0" * 100,
        "empty": b"",
        "random": os.urandom(5000),
    }


def outside(base: Path) -> list[str]:
    kept = (base / "state", base / "shelf")
    return sorted(str(path) for path in base.rglob("*") if not any(top in (path, *path.parents) for top in kept))


def test_hostile_archives_are_left_out_and_the_good_ones_served(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for name, data in hostile().items():
        (shelf / f"{name}.tar.gz").write_bytes(data)
    (shelf / "good.tar.gz").write_bytes(packed())
    (shelf / "gr\u00fc\u00dfe \U0001f600.tar.gz").write_bytes(
        packed(("d\u00e9j\u00e0/\u65e5\u672c.txt", tarfile.REGTYPE, b"x", ""))
    )
    (shelf / "link.tar.gz").symlink_to("/etc/passwd")
    (shelf / "dangling.tar.gz").symlink_to("/nowhere")
    (tmp_path / "models").mkdir()
    (tmp_path / "server.log").touch()
    before = outside(tmp_path)
    with running(tmp_path, "--models", str(shelf), **PLANTED) as server:
        deadline = time.monotonic() + 60
        while len(server.names()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.names() == ["good", "gr--e--"]
        assert server.invoke("good", [1]).json() == server.invoke("gr--e--", [1]).json() == [1]
        assert outside(tmp_path) == before
        assert not Path("/tmp/berth-stranger-was-here").exists()
        assert not Path("/etc/berth-stranger").exists()
        errors = [line["message"] for line in server.log_lines() if line["level"] == "error"]
        for name in (*hostile(), "link", "dangling"):
            assert any(f"model {name} is not loaded" in error for error in errors), (name, errors)
        assert "\x1b" not in server.log()
        assert "Traceback" not in server.log()


def lying(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def entry(**changes: object) -> bytes:
    info = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    return json.dumps({"embeddings.word_embeddings.weight": info}).encode()


LYING_WEIGHTS = {
    "a header of 2^63 bytes": struct.pack("<Q", 1 << 63) + b"{}",
    "a header longer than the file": struct.pack("<Q", 5000) + b"{}",
    "no header": b"",
    "a header that is no JSON": lying(b"{"),
    "a header nested without end": lying(b'{"a":' * 50_000),
    "a tensor beyond the file": lying(entry(data_offsets=[0, 1 << 40], shape=[1 << 38]), b"\0" * 8),
    "a tensor before the file": lying(entry(data_offsets=[-8, 0]), b"\0" * 8),
    "a shape that overflows": lying(entry(shape=[1 << 62, 1 << 62]), b"\0" * 8),
    "a shape that is negative": lying(entry(shape=[-2]), b"\0" * 8),
    "an unknown type": lying(entry(dtype="F7"), b"\0" * 8),
    "two tensors in one place": lying(
        b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},' + entry()[1:], b"\0" * 8
    ),
}


@pytest.mark.parametrize("content", LYING_WEIGHTS.values(), ids=LYING_WEIGHTS.keys())
def test_weights_that_lie_about_themselves_are_a_broken_archive(
    server: Server, content: bytes, request: pytest.FixtureRequest
) -> None:
    name = f"liar{list(LYING_WEIGHTS).index(request.node.callspec.id)}"
    tiny_bert(server.folder(name))
    (server.folder(name) / "model.safetensors").write_bytes(content)
    answer = server.load(name)
    assert (answer.status_code, answer.json()["reason"]) == (400, "model.archive"), answer.text


CONFIGS = [
    b"",
    b"[]",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"architectures": 5}',
    b'{"architectures": ["BertModel"], "hidden_size": 0}',
]
CONFIGS += [b'{"architectures": ["BertModel"], "hidden_size": 1e99, "num_hidden_layers": 99999999}', b"\xff\xfe"]
CONFIGS += [b'{"architectures": ["BertModel"], "num_hidden_layers": 1000000000}']
CONFIGS += [b'{"architectures": ["BertModel"], "num_attention_heads": 0}']
CONFIGS += [b'{"architectures": ["DistilBertModel"], "model_type": "distilbert", "n_layers": 1000000}']
CONFIGS += [b'{"architectures": ["../../etc/passwd"]}', b'{"architectures": ["__import__"]}', b"null"]


@pytest.mark.parametrize("config", CONFIGS, ids=[f"{config[:50]!r}" for config in CONFIGS])
@pytest.mark.parametrize("file", ["config.json", "berth.json", "tokenizer_config.json"])
def test_descriptions_that_are_none_are_a_broken_archive(server: Server, file: str, config: bytes) -> None:
    name = f"d{CONFIGS.index(config)}{file[0]}"
    tiny_bert(server.folder(name))
    (server.folder(name) / file).write_bytes(config)
    answer = server.load(name)
    if file == "tokenizer_config.json" and answer.status_code == 200:  # keys that say nothing to us are ignored
        server.unload(name).raise_for_status()
    else:
        told = (answer.status_code, answer.json()["reason"])
        assert told in ((400, "model.archive"), (500, "model.load_failed")), answer.text


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_a_description_of_a_terabyte_or_without_an_end_is_a_broken_archive(server: Server, file: str) -> None:
    for kind in ("hole", "fifo"):
        name = f"{kind}{file[0]}{len(file)}"
        tiny_bert(server.folder(name))
        there = server.folder(name) / file
        there.unlink(missing_ok=True)
        if kind == "fifo":
            os.mkfifo(there)
        else:
            with there.open("wb") as out:
                out.truncate(1 << 40)
        answer = server.load(name)
        assert (answer.status_code, answer.json()["reason"]) == (400, "model.archive"), answer.text


def test_code_in_a_torch_pickle_is_never_run(server: Server, tmp_path: Path) -> None:
    tiny_bert(server.folder("pickled"))
    (server.folder("pickled") / "model.safetensors").unlink()
    for zipped in (True, False):
        state = {"embeddings.word_embeddings.weight": Marks(tmp_path / "was-run")}
        torch.save(state, server.folder("pickled") / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        answer = server.load("pickled")
        assert (answer.status_code, answer.json()["reason"]) == (400, "model.archive"), answer.text
        assert not (tmp_path / "was-run").exists()


def test_the_owners_policies_hold_through_the_server(tmp_path: Path) -> None:
    secure = {
        "SAGEMAKER_SECURE_MODE": "true",
        "SAGEMAKER_SECURITY_CONTROLS": "DISALLOW_REQUIREMENTS_TXT,DISALLOW_CHAT_TEMPLATE",
        "SAGEMAKER_UNTRUSTED_CHANNELS": str(tmp_path / "models"),
        "BERTH_ALLOW_CODE": "off",
        "BERTH_ALLOW_PICKLE": "off",
        **PLANTED,
    }
    mark = tmp_path / "was-run"
    with running(tmp_path, **secure) as server:
        write_handler(server.folder("code"), f"from pathlib import Path\nPath({str(mark)!r}).touch()\n{FINE}")
        tiny_bert(server.folder("asks"))
        (server.folder("asks") / "requirements.txt").write_text("torch")
        tiny_bert(server.folder("talks"))
        (server.folder("talks") / "chat_template.jinja").write_text("{{ x }}")
        tiny_bert(server.folder("pickled"))
        (server.folder("pickled") / "model.safetensors").unlink()
        torch.save({"w": torch.zeros(2)}, server.folder("pickled") / "pytorch_model.bin")
        tiny_bert(server.folder("plain"))
        words = {
            "code": "BERTH_ALLOW_CODE",
            "asks": "DISALLOW_REQUIREMENTS_TXT",
            "talks": "DISALLOW_CHAT_TEMPLATE",
            "pickled": "BERTH_ALLOW_PICKLE",
        }
        for name, word in words.items():
            answer = server.load(name)
            assert (answer.status_code, answer.json()["reason"]) == (400, "model.archive")
            assert word in answer.json()["message"]
            assert_clean(answer.text, server.base / "state", str(answer.request.read()))
        assert server.load("plain").status_code == 200
        assert not mark.exists()
        assert server.names() == ["plain"]


def test_unsigned_code_is_not_imported_where_signatures_are_required(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    keys = tmp_path / "keys"
    keys.mkdir()
    with running(tmp_path, BERTH_SIGNATURES="require", BERTH_SIGNATURE_KEYS=str(keys)) as server:
        write_handler(server.folder("code"), f"from pathlib import Path\nPath({str(mark)!r}).touch()\n{FINE}")
        answer = server.load("code")
        assert (answer.status_code, answer.json()["reason"]) == (400, "model.archive")
        assert "no signature" in answer.json()["message"]
        assert not mark.exists()
