"""Archives and folders that would not serve, each named for what is wrong with it; sources in systems.md and issues."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from tests.makers import tiny_bert
from tests.server import write_handler, write_script

GOOD = "def model_fn(d):\n    return 1\ndef predict_fn(data, model):\n    return model\n"
HANDLER = """
from container.handler import Handler
from container.payload import Payload
class Mine(Handler):
    example = Payload(b"[1]")
"""

#: name -> writes the thing into a fresh folder and returns its path.
Maker = Callable[[Path], Path]


def _tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    archive = path / "model.tar.gz"
    with tarfile.open(archive, mode) as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def _pack(folder: Path, archive: Path, arcname: str = ".") -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=arcname)
    return archive


# --- archives that cannot be unpacked --------------------------------------------------------------------------------


def is_a_zip(path: Path) -> Path:
    with zipfile.ZipFile(path / "model.tar.gz", "w") as packed:
        packed.writestr("config.json", "{}")
    return path / "model.tar.gz"


def is_bzip2(path: Path) -> Path:
    return _tar(path, (_member("config.json"), b"{}"), mode="w:bz2")


def is_text(path: Path) -> Path:
    (path / "model.tar.gz").write_text("<Error><Code>AccessDenied</Code></Error>")
    return path / "model.tar.gz"


def is_truncated(path: Path) -> Path:
    archive = _pack(tiny_bert(path / "bert"), path / "model.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-2000])
    return archive


def is_empty(path: Path) -> Path:
    return _tar(path)


def holds_a_symlink(path: Path) -> Path:
    return _tar(path, (_member("code/inference.py", tarfile.SYMTYPE, "/opt/inference.py"), b""))


def holds_a_hard_link(path: Path) -> Path:
    return _tar(path, (_member("a"), b"x"), (_member("b", tarfile.LNKTYPE, "a"), b""))


def leads_out(path: Path) -> Path:
    return _tar(path, (_member("../../etc/cron.d/job"), b"x"))


def is_absolute(path: Path) -> Path:
    return _tar(path, (_member("/etc/passwd"), b"x"))


def holds_a_device(path: Path) -> Path:
    return _tar(path, (_member("null", tarfile.CHRTYPE), b""))


def is_a_bomb(path: Path) -> Path:
    return _tar(path, (_member("zeros.bin"), b"\0" * (96 << 20)))


# --- layouts that are none -------------------------------------------------------------------------------------------


def is_packed_with_backslashes(path: Path) -> Path:
    return _tar(path, (_member("code\\inference.py"), GOOD.encode()))


def lies_two_folders_down(path: Path) -> Path:
    write_script(path / "m" / "export" / "model", GOOD)
    return path / "m"


def misspells_its_script(path: Path) -> Path:
    write_script(path / "m", GOOD)
    (path / "m" / "code" / "inference.py").rename(path / "m" / "code" / "Inference.py")
    return path / "m"


def lacks_a_shard_and_the_index(path: Path) -> Path:
    folder = tiny_bert(path / "m")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00003.safetensors")
    return folder


def lies_one_folder_down(path: Path) -> Path:
    write_script(path / "mymodel", GOOD)
    return _pack(path / "mymodel", path / "model.tar.gz", "mymodel")


def has_its_script_at_the_root(path: Path) -> Path:
    (path / "m").mkdir()
    (path / "m" / "inference.py").write_text(GOOD)
    return path / "m"


def names_its_script_otherwise(path: Path) -> Path:
    tiny_bert(path / "m")
    write_script(path / "m", GOOD)
    (path / "m" / "code" / "inference.py").rename(path / "m" / "code" / "serve.py")
    return path / "m"


def has_no_weights(path: Path) -> Path:
    (tiny_bert(path / "m") / "model.safetensors").unlink()
    return path / "m"


def has_weights_of_tensorflow(path: Path) -> Path:
    (tiny_bert(path / "m") / "model.safetensors").rename(path / "m" / "tf_model.h5")
    return path / "m"


def has_a_git_lfs_pointer(path: Path) -> Path:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tiny_bert(path / "m") / "model.safetensors").write_text(pointer)
    return path / "m"


def has_weights_and_nothing_else(path: Path) -> Path:
    (path / "m").mkdir()
    torch.save({"w": torch.zeros(2)}, path / "m" / "model.pth")
    return path / "m"


def is_an_archive_in_an_archive(path: Path) -> Path:
    inner = _pack(tiny_bert(path / "bert"), path / "inner.tar.gz")
    return _tar(path, (_member("inner.tar.gz"), inner.read_bytes()))


def lacks_a_shard(path: Path) -> Path:
    folder = tiny_bert(path / "m")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def holds_an_adapter(path: Path) -> Path:
    (tiny_bert(path / "m") / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return path / "m"


def has_an_unknown_network(path: Path) -> Path:
    folder = tiny_bert(path / "m")
    (folder / "config.json").write_text('{"architectures": ["MysteryForEverything"], "model_type": "mystery"}')
    return folder


def misspells_a_setting(path: Path) -> Path:
    (tiny_bert(path / "m") / "berth.json").write_text('{"timeout": 20}')
    return path / "m"


def has_a_broken_berth_json(path: Path) -> Path:
    (tiny_bert(path / "m") / "berth.json").write_text("{'task': 'embeddings'}")
    return path / "m"


def asks_for_an_hour(path: Path) -> Path:
    (tiny_bert(path / "m") / "berth.json").write_text('{"timeout_s": 7200}')
    return path / "m"


def names_a_handler_that_is_not_there(path: Path) -> Path:
    (tiny_bert(path / "m") / "berth.json").write_text('{"handler": "serving:Mine"}')
    return path / "m"


def names_no_service(path: Path) -> Path:
    (path / "m" / "MAR-INF").mkdir(parents=True)
    (path / "m" / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"modelName": "m"}}')
    return path / "m"


def has_a_part_that_is_no_model(path: Path) -> Path:
    tiny_bert(path / "m" / "one")
    tiny_bert(path / "m" / "two")
    (path / "m" / "docs").mkdir()
    (path / "m" / "docs" / "notes.txt").write_text("hello")
    return path / "m"


def has_no_version_folder(path: Path) -> Path:
    (path / "m").mkdir()
    (path / "m" / "config.pbtxt").write_text('name: "m"\nplatform: "pytorch_libtorch"\n')
    return path / "m"


def leads_out_by_a_link(path: Path) -> Path:
    folder = tiny_bert(path / "m")
    (path / "elsewhere.json").write_text("{}")
    (folder / "extra.json").symlink_to(path / "elsewhere.json")
    return folder


# --- what shows when it is loaded or asked ---------------------------------------------------------------------------


def _script(code: str) -> Maker:
    return lambda path: write_script(path / "m", code)


def _handler(body: str, **berth: object) -> Maker:
    return lambda path: write_handler(path / "m", HANDLER + body, **berth)


def _truncated_weights(path: Path) -> Path:
    weights = tiny_bert(path / "m") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return path / "m"


def _no_tokenizer(path: Path) -> Path:
    folder = tiny_bert(path / "m")
    for name in ("vocab.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    return folder


def _pickled_booster(path: Path) -> Path:
    (path / "m").mkdir()
    (path / "m" / "xgboost-model").write_bytes(pickle.dumps({"a": "booster"}))
    return path / "m"


def _pickled_code(path: Path) -> Path:
    folder = tiny_bert(path / "m")
    (folder / "model.safetensors").unlink()
    torch.save(torch.nn.Linear(1, 1), folder / "pytorch_model.bin")
    return folder


def _other_family_without_tokenizer(path: Path) -> Path:
    """A network that its transformers class computes; transformers makes a tokenizer that knows no words."""
    folder = _no_tokenizer(path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "mish"}))
    return folder


def _tokenizer_of_another(path: Path) -> Path:
    words = (tiny_bert(path / "m") / "vocab.txt").read_text()
    (path / "m" / "vocab.txt").write_text("\n".join([words, *(f"word{number}" for number in range(100))]))
    return path / "m"


def _utf16(path: Path) -> Path:
    (path / "m" / "code").mkdir(parents=True)
    (path / "m" / "code" / "inference.py").write_bytes(GOOD.encode("utf-16-le"))
    return path / "m"


def _opens_a_pickled_module(path: Path) -> Path:
    code = "import torch\ndef model_fn(d):\n    return torch.load(d + '/model.pth')\n" + GOOD[29:]
    torch.save(torch.nn.Linear(1, 1), write_script(path / "m", code) / "model.pth")
    return path / "m"


def _asks_in_vain(path: Path) -> Path:
    (write_script(path / "m", GOOD) / "code" / "requirements.txt").write_text("numpy=1.26\n")
    return path / "m"


def _no_class(path: Path) -> Path:
    return write_handler(path / "m", "class Mine:\n    pass\n")


LOADS: dict[str, Maker] = {
    "does_not_parse": _script("def model_fn(d)\n    return 1\n"),
    "lacks_a_package": _script("import fasttext_of_old\n" + GOOD),
    "lacks_a_file_of_its_own": _script("from helpers import load\n" + GOOD),
    "lacks_predict_fn": _script("def model_fn(d):\n    return 1\n"),
    "mixes_styles": _script(GOOD + "def transform_fn(model, data, content_type, accept):\n    return data\n"),
    "takes_too_much": _script(GOOD + "def input_fn(data, content_type, more, and_more):\n    return data\n"),
    "opens_by_a_relative_name": _script("def model_fn(d):\n    return open('synset.txt')\n" + GOOD[29:]),
    "raises_at_load": _script("def model_fn(d):\n    raise RuntimeError('no GPU, no model')\n" + GOOD[29:]),
    "exits_at_import": _script("raise SystemExit('call me as a script')\n" + GOOD),
    "crashes_at_load": _script("import os\ndef model_fn(d):\n    os.abort()\n" + GOOD[29:]),
    "uses_a_pipeline_that_is_gone": _script(
        "from transformers import pipeline\ndef model_fn(d):\n    return pipeline('summarization', d)\n" + GOOD[29:]
    ),
    "has_no_handler_class": _no_class,
    "has_two_handler_classes": _handler("class Other(Handler):\n    pass\n"),
    "answers_too_few": _handler("    def predict(self, batch):\n        return batch[:1]\n"),
    "refuses_its_own_example": _handler(
        "    def decode(self, payload):\n        raise ValueError('I want a cat')\n"
        "    def predict(self, batch):\n        return batch\n"
    ),
    "answers_with_an_object": _handler("    def predict(self, batch):\n        return [object() for _ in batch]\n"),
    "forgets_when_it_sinks": _handler(
        "    def load(self, model_dir, context):\n        import os\n        self.token = os.urandom(8).hex()\n"
        "    def predict(self, batch):\n        return [self.token for _ in batch]\n"
    ),
    "has_truncated_weights": _truncated_weights,
    "has_no_tokenizer": _no_tokenizer,
    "has_no_tokenizer_for_transformers": _other_family_without_tokenizer,
    "has_the_tokenizer_of_another": _tokenizer_of_another,
    "is_not_utf8": _utf16,
    "opens_a_pickled_module": _opens_a_pickled_module,
    "needs_a_gpu": _script("import torch\ndef model_fn(d):\n    return torch.nn.Linear(1, 1).cuda()\n" + GOOD[29:]),
    "downloads": _script(
        "from transformers import AutoModel\ndef model_fn(d):\n    return AutoModel.from_pretrained('of-the-hub')\n"
        + GOOD[29:]
    ),
    "asks_for_packages_in_vain": _asks_in_vain,
    "is_a_pickled_booster": _pickled_booster,
    "is_a_pickled_module": _pickled_code,
}
