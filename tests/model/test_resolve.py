import subprocess
import sys

import pytest

from container.archive.manifest import Berth, Manifest
from container.errors import BadArchive
from container.model.resolve import NATIVE, TASKS, place_of, resolve
from tests.makers import tiny_bert


def folder(*architectures, task="embeddings", **more):
    return Manifest("folder", "/nowhere", task=task, architectures=list(architectures), **more)


@pytest.mark.parametrize(
    ("manifest", "place"),
    [
        (folder("DistilBertModel"), "guests"),
        (folder("BertModel", task="text_generation"), "guests"),
        (folder(), "guests"),
        (folder("BertModel", settings=Berth(isolation="own")), "own"),
        (folder("BertModel", requirements="/nowhere/code/requirements.txt"), "own"),
        (Manifest("script", "/nowhere", "/nowhere/code", "inference.py", architectures=["BertModel"]), "guests"),
        (Manifest("handler", "/nowhere", "/nowhere/code", "handler.py"), "guests"),
    ],
)
def test_where_a_model_runs(manifest, place):
    assert place_of(manifest) == place


def test_only_networks_of_ours_run_in_the_engine(tmp_path):
    tiny_bert(tmp_path)
    assert place_of(Manifest("folder", str(tmp_path), task="embeddings", architectures=["BertModel"])) == "engine"
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"mish"'))  # a BERT, but not one that our function computes
    assert place_of(Manifest("folder", str(tmp_path), task="embeddings", architectures=["BertModel"])) == "guests"


@pytest.mark.parametrize("task", TASKS)
def test_every_task_of_the_table_has_its_handler(task):
    assert resolve(Manifest("folder", "/nowhere", task=task), None).task == task


def test_every_native_network_has_a_task_of_the_table():
    assert set(NATIVE.values()) <= set(TASKS)


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(
        BadArchive, match="no handler for task 'embedings'; did you mean embeddings\\? known: embeddings"
    ):
        resolve(Manifest("folder", "/nowhere", task="embedings"), None)


def test_an_installed_package_can_add_a_task(tmp_path, monkeypatch):
    (tmp_path / "sums.py").write_text(
        "from container.handler import Handler\nclass Sums(Handler):\n    task = 'sums'\nNOT_ONE = 3\n"
    )
    info = tmp_path / "sums-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sums\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[berth.handlers]\nsums = sums:Sums\nodd = sums:NOT_ONE\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve(Manifest("folder", "/nowhere", task="sums"), None).task == "sums"
    with pytest.raises(BadArchive, match="sums:NOT_ONE, the handler of task 'odd', is not a subclass"):
        resolve(Manifest("folder", "/nowhere", task="odd"), None)
    with pytest.raises(BadArchive, match=r"known: .*sums"):
        resolve(Manifest("folder", "/nowhere", task="neither"), None)
    monkeypatch.delitem(sys.modules, "sums")


def test_kinds_that_are_not_served_yet_say_so():
    with pytest.raises(BadArchive, match="kind tasks are recognised but not served yet"):
        resolve(Manifest("tasks", "/nowhere"), None)


def test_exported_graphs_are_served_by_the_tensors_task_and_never_in_the_engine():
    manifest = Manifest("triton", "/nowhere", task="tensors")
    assert (resolve(manifest, None).task, place_of(manifest)) == ("tensors", "guests")


def test_a_host_child_imports_no_torch_transformers_or_flask():
    code = (
        "import sys, container.host.child, container.model.opening, container.archive.describe\n"
        "print(sorted({'torch', 'transformers', 'flask', 'tokenizers', 'handlers', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
