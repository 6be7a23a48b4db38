import json
import threading
from pathlib import Path

import pytest
import torch
from archives_at_hand import results

from container.archive.describe import describe
from container.errors import BadArchive, Failure, LoadFailed, OutOfMemory
from container.handler import Context
from container.model import opening, workdir
from container.payload import Payload

FUNCTION = """
_model = None

def handle(data, context):
    global _model
    if data is None:
        with open("synset.txt") as file:
            _model = file.read().split()
        return None
    return [[f"probability={len(item['body']):f}, class={name}" for name in _model] for item in data]
"""

CLASS = """
import json
from helper import shout

class Base:
    def handle(self, data, context):
        return [self.one(item, index, context) for index, item in enumerate(data)]

class Service(Base):
    def initialize(self, context):
        self.properties = context.system_properties
        self.config = context.model_yaml_config
        self.loads = context.get_request_id()

    def one(self, item, index, context):
        context.metrics.add_counter("asked", 1)
        context.metrics.add_time("took", 1.5, index, unit="ms")
        context.metrics.add_metric("any", 3, unit="parts")
        context.metrics.add_metric_to_cache("cached", "count").add_or_update(2)
        context.set_response_content_type(index, "application/x-said")
        context.set_response_header(index, "X-Said", "yes")
        context.set_response_status(201, "Made", index)
        return json.dumps({
            "said": shout(item["body"].decode()),
            "type": context.get_request_header(index, "content-type"),
            "all": dict(context.get_all_request_header(index)),
            "id": context.get_request_id(index),
            "asked": context.metrics.values["asked", "count"],
            "properties": {key: self.properties[key] for key in ("gpu_id", "batch_size", "server_name")},
            "at_home": self.properties["model_dir"],
            "manifest": context.manifest["model"]["modelName"],
            "config": self.config,
        })
"""

RAISES = """
class PredictionException(Exception):
    def __init__(self, message, error_code):
        super().__init__(message)
        self.message, self.error_code = message, error_code

def handle(data, context):
    if data is None:
        return
    word = data[0]["body"].decode()
    if word == "teapot":
        raise PredictionException("short and stout", 418)
    if word == "memory":
        raise MemoryError("no more")
    if word == "few":
        return []
    if word == "nothing":
        return None
    if word == "object":
        return [object()]
    raise ValueError("not today")
"""

EAGER = """
from ts.torch_handler.base_handler import BaseHandler
from ts.handler_utils.timer import timed
from ts.utils.util import PredictionException

class Doubles(BaseHandler):
    @timed
    def preprocess(self, data):
        import torch
        rows = [float(row.get("data") or row.get("body")) for row in data]
        if min(rows) < 0:
            raise PredictionException("no negative numbers", 422)
        return torch.tensor(rows).unsqueeze(1)

    def postprocess(self, data):
        return [{"label": self.mapping["0"], "value": row[0]} for row in data.tolist()]
"""

INITIALIZES = """
class Service:
    def initialize(self, context):
        raise {}

    def handle(self, data, context):
        return data
"""

NETWORK = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(1, 1)

    def forward(self, x):
        return self.line(x)
"""


@pytest.fixture
def archive(tmp_path):
    """Write a folder of files, text or bytes; returns it."""

    def write(files, name="archive"):
        for path, content in files.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return write


@pytest.fixture
def opened():
    models = []

    def open_one(folder, **told):
        manifest = describe(folder, **told)
        properties = {"batch_size": manifest.settings.batch.max_size}
        models.append(opening.open_model(manifest, Context("served", "cpu", properties=properties)))
        return models[-1].handler

    yield open_one
    for model in models:
        model.close()


def mar(handler, **model):
    return json.dumps({"runtime": "python", "model": {"modelName": "m", "handler": handler, **model}})


def said(handler, *bodies, **more):
    return results(handler, *(Payload(body, **more) for body in bodies))


@pytest.mark.parametrize("handler", ["service.py:handle", "service:handle", "service", "/home/model-server/service.py"])
def test_a_function_is_called_with_none_to_load_and_finds_its_files_beside_it(archive, opened, handler):
    folder = archive({"MAR-INF/MANIFEST.json": mar(handler), "service.py": FUNCTION, "synset.txt": "cat\ndog"})
    before = Path.cwd()
    (answer,) = said(opened(folder), b"jpg", content_type="application/x-image")
    assert json.loads(answer.body) == ["probability=3.000000, class=cat", "probability=3.000000, class=dog"]
    assert answer.content_type == "application/json"
    assert Path.cwd() == before


@pytest.mark.parametrize("handler", ["service", "service.py:Service"])
def test_a_class_has_the_whole_context_and_chooses_status_headers_and_type(archive, opened, handler):
    files = {"service.py": CLASS, "helper.py": "def shout(text): return text.upper()"}
    config = "batchSize: 3\nhandler:\n  wishes: [a, b]\n"
    folder = archive({**files, "MAR-INF/MANIFEST.json": mar(handler), "model-config.yaml": config})
    headers = {"x-amzn-sagemaker-target-model": "m.tar.gz"}
    first, second = said(opened(folder), b"hi", b"ho", content_type="text/plain", request_id="r7", headers=headers)
    for answer, word, count in ((first, "HI", 1), (second, "HO", 2)):
        assert json.loads(answer.body) == {
            "said": word,
            "type": "text/plain",
            "all": {
                "Content-Type": "text/plain",
                "X-Amzn-SageMaker-Inference-Id": "r7",
                "X-Amzn-SageMaker-Target-Model": "m.tar.gz",
            },
            "id": "r7",
            "asked": count,
            "properties": {"gpu_id": None, "batch_size": 3, "server_name": "MMS"},
            "at_home": str(folder),
            "manifest": "m",
            "config": {"batchSize": 3, "handler": {"wishes": ["a", "b"]}},
        }
        assert (answer.status, answer.content_type, answer.headers) == (201, "application/x-said", {"x-said": "yes"})


@pytest.mark.parametrize(
    ("word", "code", "status", "text"),
    [
        (b"teapot", "model.failed", 418, "short and stout"),
        (b"memory", "memory.exhausted", None, "no more"),
        (b"few", "model.bad_answer", None, "0 outputs for 1 inputs"),
        (b"nothing", "model.bad_answer", None, "nothing"),
        (b"object", "model.bad_answer", None, "object"),
        (b"else", "model.failed", None, "ValueError: not today"),
    ],
)
def test_what_a_service_raises_or_forgets_is_told_apart(archive, opened, word, code, status, text):
    folder = archive({"MAR-INF/MANIFEST.json": mar("service.py:handle"), "service.py": RAISES})
    (answer,) = said(opened(folder), word)
    assert isinstance(answer, Failure)
    assert (answer.code, answer.status) == (code, status)
    assert text in answer.message


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (
            "class A:\n def initialize(self, c): raise OSError('no card')\n def handle(self, d, c): ...",
            LoadFailed,
            "no card",
        ),
        (
            "class A:\n def initialize(self, c): raise MemoryError()\n def handle(self, d, c): ...",
            OutOfMemory,
            "memory",
        ),
        ("def handle(data, context): raise KeyError('weights')", LoadFailed, "weights"),
        ("x = 1", BadArchive, "neither"),
        ("class A:\n handle = len\nclass B:\n handle = len", BadArchive, "A, B"),
    ],
)
def test_a_service_that_does_not_load_fails_the_load(archive, opened, code, error, words):
    folder = archive({"MAR-INF/MANIFEST.json": mar("service"), "service.py": code})
    with pytest.raises(error, match=words):
        opened(folder)


def test_a_handler_of_torchserves_own_is_refused_with_the_mend(archive, opened):
    with pytest.raises(BadArchive, match=r"requirements\.txt"):
        opened(archive({"MAR-INF/MANIFEST.json": mar("image_classifier", serializedFile="model.pt")}))


@pytest.mark.parametrize("eager", [True, False])
def test_handlers_on_torchserves_base_class_run_without_torchserve(archive, opened, tmp_path, eager):
    net = torch.nn.Linear(1, 1)
    with torch.no_grad():
        net.weight.fill_(2), net.bias.zero_()
    files = {"handler.py": EAGER, "index_to_name.json": '{"0": "twice"}'}
    weights = tmp_path / "weights.pt"
    if eager:
        torch.save({f"line.{name}": value for name, value in net.state_dict().items()}, weights)
        told = {"modelFile": "model.py", "serializedFile": "weights.pt"}
        files["model.py"] = NETWORK
    else:
        torch.jit.save(torch.jit.trace(net, torch.ones(1, 1)), str(weights))
        told = {"serializedFile": "weights.pt"}
    files |= {"weights.pt": weights.read_bytes(), "MAR-INF/MANIFEST.json": mar("handler.py", **told)}
    handler = opened(archive(files))
    fine, bad = said(handler, b"4"), said(handler, b"-1")
    assert json.loads(fine[0].body) == {"label": "twice", "value": 8.0}
    assert (bad[0].status, bad[0].message.count("no negative numbers")) == (422, 1)


def test_forms_arrive_by_the_names_of_their_parts(archive, opened):
    code = """
def handle(data, context):
    return data and [{name: part.decode() if name == "file" else part for name, part in data[0].items()}]
"""
    folder = archive({"MAR-INF/MANIFEST.json": mar("service.py:handle"), "service.py": code})
    handler = opened(folder)
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\ncontent\r\n'
        b'--b\r\nContent-Disposition: form-data; name="word"\r\n\r\nhi\r\n--b--\r\n'
    )
    (parts,) = said(handler, body, content_type="multipart/form-data; boundary=b")
    assert json.loads(parts.body) == {"file": "content", "word": "hi"}
    (fields,) = said(handler, b"word=hi&more=", content_type="application/x-www-form-urlencoded")
    assert json.loads(fields.body) == {"word": "hi", "more": ""}
    (broken,) = said(handler, b"none of it", content_type="multipart/form-data; boundary=b")
    assert broken.code == "request.malformed"


def test_text_and_bytes_go_out_as_they_are(archive, opened):
    code = "def handle(data, context):\n    return data and [bytes(data[0]['body']), 'größe'][:1 + (len(data) > 1)]"
    folder = archive(
        {"MAR-INF/MANIFEST.json": mar("service.py:handle"), "service.py": code, "model-config.yaml": "batchSize: 2"}
    )
    raw, text = said(opened(folder), b"\x00\xff", b"")
    assert (raw.body, raw.content_type) == (b"\x00\xff", "application/octet-stream")
    assert (text.body.decode(), text.content_type) == ("größe", "text/plain; charset=utf-8")


def test_an_archive_without_a_manifest_names_its_service_in_berth_json(archive, opened):
    files = {"service.py": FUNCTION, "synset.txt": "cat", "berth.json": '{"handler": "service.py:handle"}'}
    (answer,) = said(opened(archive(files)), b"jpg")
    assert json.loads(answer.body) == ["probability=3.000000, class=cat"]
    inside = {"code/service.py": FUNCTION, "synset.txt": "cow", "berth.json": '{"handler": "service.py:handle"}'}
    (answer,) = said(opened(archive(inside, "inside")), b"jpg")
    assert json.loads(answer.body) == ["probability=3.000000, class=cow"]


def test_one_service_of_the_image_serves_every_archive_that_brings_no_code(archive, opened):
    service = archive({"model_handler.py": FUNCTION}, "image") / "model_handler.py"
    for name in ("cat", "dog"):
        folder = archive({"synset.txt": name, "model.safetensors": b"weights"}, name)
        (answer,) = said(opened(folder, service=f"{service}:handle"), b"jpg")
        assert json.loads(answer.body) == [f"probability=3.000000, class={name}"]


def check_working_directories(tmp_path):
    folders = [tmp_path / name for name in "abcd"]
    wrong = []

    def work(folder):
        for _ in range(200):
            with workdir.inside(folder):
                if Path("name").read_text() != folder.name:
                    wrong.append(folder)

    for folder in folders:
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    before = Path.cwd()
    threads = [threading.Thread(target=work, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    with workdir.inside(folders[0]):
        assert Path.cwd() == folders[0]
    for thread in threads:
        thread.join()
    assert wrong == []
    assert Path.cwd() == before


def test_threads_have_working_directories_of_their_own_or_take_turns(tmp_path):
    check_working_directories(tmp_path)


def test_without_the_kernels_leave_threads_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "_unshare", lambda: False)
    check_working_directories(tmp_path)
