import errno
import gc
import sys
import weakref

import pytest
import torch
from archives_at_hand import bodies, results, script

from container.archive.manifest import Manifest
from container.errors import BadArchive, LoadFailed, OutOfMemory, ServingError
from container.handler import Context, Handler
from container.model import opening
from container.payload import Payload


def test_a_handler_class_is_opened_measured_and_closed(opened):
    model = opened("doubles_in_handler", name="doubles")
    assert (model.bytes, sorted(model.times_ms)) == (4, ["import", "load"])
    assert (model.handler.task, model.handler.registered_name) == ("doubling", "doubles")
    assert bodies(model.handler, model.handler.example, Payload(b"4")) == [b"42.0", b"8.0"]
    net = weakref.ref(model.handler.net)
    refused, answered = results(model.handler, Payload(b'"text"'), Payload(b"1"))
    assert (refused.code, answered.body) == ("request.input", b"2.0")
    model.close()
    assert net() is None
    assert not [name for name in sys.modules if name.startswith("archive") and name[7].isdigit()]


def test_a_model_kept_in_a_global_is_measured_and_freed(opened):
    model = opened("keeps_model_in_global")
    assert (model.bytes, bodies(model.handler, Payload(b"1"))) == (440, [b"[10]"])
    (name,) = [name for name in sys.modules if name.startswith("archive") and name.endswith("_model.inference")]
    kept = weakref.ref(sys.modules[name].MODEL)
    model.close()
    assert kept() is None


def test_a_model_in_a_circle_is_freed_by_close_too(write_archive, opened):
    code = (
        "import torch\n"
        "def model_fn(d):\n    net = torch.nn.Linear(7, 7)\n    net.owner = [net]\n    return net\n"
        "def predict_fn(x, m): return x\n"
    )
    model = opened(write_archive({"code/inference.py": code}))
    net = weakref.ref(model.handler.model)
    gc.disable()
    try:
        model.close()
        assert net() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("archive", "error", "text"),
    [
        ("raises_at_load", LoadFailed, "the model failed to load: ValueError: weights missing: best.bin"),
        ("exits_at_import", LoadFailed, "the model failed to load: SystemExit: no licence found"),
        ("no_handler", BadArchive, "handler.py has no subclass of container.handler.Handler"),
        ("two_handlers", BadArchive, "handler.py has several subclasses of container.handler.Handler (First, Second)"),
    ],
)
def test_a_load_that_fails_says_why_and_leaves_nothing(opened, archive, error, text, caplog):
    with pytest.raises(error) as caught:
        opened(archive)
    assert caught.value.message.startswith(text)
    assert caught.value.__cause__ is None
    if error is LoadFailed:
        assert [bool(record.exc_info) for record in caplog.records] == [True]


def test_a_syntax_error_is_told_with_its_line(write_archive, opened):
    with pytest.raises(LoadFailed, match=r"SyntaxError: expected ':' \(inference.py, line 1\)"):
        opened(write_archive({"code/inference.py": "def model_fn(d)\n    ...\n"}))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=repr,
)
def test_running_out_of_memory_at_load_is_told_as_that(error, monkeypatch):
    monkeypatch.setitem(sys.modules, "odd_handler", module := type(sys)("odd_handler"))

    class Odd(Handler):
        def load(self, model_dir, context):
            raise error

    module.Odd = Odd
    monkeypatch.setitem(opening.resolve.__globals__["TASKS"], "odd", "odd_handler:Odd")
    with pytest.raises(OutOfMemory):
        opening.open_model(Manifest("folder", "/nowhere", task="odd"), Context("m"))


def test_the_bytes_of_a_built_in_handler_are_those_of_its_weights(monkeypatch, tmp_path):
    class Counted(dict):
        bytes = 1234

    monkeypatch.setitem(sys.modules, "odd_handler", module := type(sys)("odd_handler"))

    class Odd(Handler):
        def load(self, model_dir, context):
            self.weights = context.open_weights(model_dir)

    module.Odd = Odd
    monkeypatch.setitem(opening.resolve.__globals__["TASKS"], "odd", "odd_handler:Odd")
    manifest = Manifest("folder", str(tmp_path), task="odd")
    for weights, count in ((Counted(a=torch.zeros(2)), 1234), ({"a": torch.zeros(2)}, 8)):
        model = opening.open_model(manifest, Context("m", open_weights=lambda folder, found=weights: found))
        assert model.bytes == count
        model.close()


def test_a_serving_error_of_the_authors_passes_as_it_is(write_archive, opened):
    code = "from container.errors import BadArchive\ndef model_fn(d): raise BadArchive('no labels.txt')\n"
    with pytest.raises(BadArchive, match=r"^no labels\.txt$"):
        opened(write_archive({"code/inference.py": code + "def predict_fn(d, m): ...\n"}))
    assert issubclass(BadArchive, ServingError)


def test_handlers_are_chosen_by_name(opened):
    model = opened(script("two_handlers", program="handler:Second"))
    assert bodies(model.handler, Payload(b"1")) == [b'"second"']
