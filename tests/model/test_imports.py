import gc
import itertools
import pickle
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from archives_at_hand import ARCHIVES, bodies, script

from container.errors import BadArchive, LoadFailed, NeedsOwnProcess
from container.handler import Context
from container.model import imports, opening
from container.model.imports import Namespace
from container.payload import Payload

CAT = b'["cat","cat","cat","cat",1]'
DOG = b'["dog","dog","dog","dog",1]'
ONE = Payload(b"1")


def code(name):
    return ARCHIVES / name / "code"


@pytest.fixture
def namespace():
    made = []

    def make(folder, name="model"):
        made.append(Namespace(name, Path(folder)))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("order", list(itertools.permutations(["says_cat", "says_dog", "says_cat"])))
def test_archives_with_the_same_module_names_each_get_their_own(opened, order):
    models = [opened(name) for name in order]
    for name, model in [*zip(order, models, strict=True), *reversed(list(zip(order, models, strict=True)))]:
        assert bodies(model.handler, ONE) == [CAT if name == "says_cat" else DOG]


def test_lazy_imports_find_home_from_every_thread(opened):
    cat, dog = opened("says_cat"), opened("says_dog")
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: bodies((cat, dog)[n % 2].handler, ONE), range(100)))
    assert answers == [[CAT], [DOG]] * 50


def test_archives_can_be_loaded_from_several_threads_at_once(opened):
    with ThreadPoolExecutor(4) as threads:
        models = list(threads.map(opened, ["says_cat", "says_dog"] * 10))
    assert [bodies(model.handler, ONE) for model in models] == [[CAT], [DOG]] * 10


def test_modules_are_gone_after_close_and_a_new_version_is_read(write_archive, opened):
    files = {
        "code/inference.py": "from word import WORD\ndef model_fn(d): return WORD\ndef predict_fn(d, m): return m\n",
        "code/word.py": "WORD = 'old'\n",
    }
    old = opened(write_archive(files))
    root = next(name for name in sys.modules if name.startswith("archive") and name.endswith(".word")).partition(".")[0]
    module = weakref.ref(sys.modules[f"{root}.word"])
    assert bodies(old.handler, ONE) == [b'"old"']
    old.close()
    assert not [name for name in sys.modules if name.startswith(root)]
    assert module() is None
    new = opened(write_archive({**files, "code/word.py": "WORD = 'new'\n"}))
    assert bodies(new.handler, ONE) == [b'"new"']


def test_what_an_archive_keeps_in_globals_is_free_after_close(namespace, tmp_path):
    (tmp_path / "holder.py").write_text(
        "import typing\nclass Big:\n    pass\nBIG = Big()\nCACHED = typing.Optional[Big]\ndef use():\n    return BIG\n"
    )
    home = namespace(tmp_path)
    big = weakref.ref(home.load("holder.py").BIG)
    home.close()
    gc.collect()
    assert big() is None


def test_a_module_named_like_an_installed_or_standard_one_is_meant_at_home_only(opened):
    model = opened("has_its_own_json")
    assert bodies(model.handler, ONE) == [b'["my json and my flask","/"]']
    import json

    import flask

    assert json.loads("[1]") == [1]
    assert flask.Flask
    assert "archive" not in json.__name__ + flask.__name__


def test_a_folder_of_data_does_not_hide_an_installed_package(write_archive, opened):
    model = opened(
        write_archive(
            {
                "code/inference.py": "import msgspec, notes.leaf, colorsys\n"
                "def model_fn(d): return [bool(msgspec.Struct), notes.leaf.X, bool(colorsys.rgb_to_hsv)]\n"
                "def predict_fn(d, m): return m\n",
                "code/msgspec/vocab.txt": "",
                "code/colorsys/vocab.txt": "",
                "code/notes/leaf.py": "X = 'a package without __init__.py'\n",
            }
        )
    )
    assert bodies(model.handler, ONE) == [b'[true,"a package without __init__.py",true]']


def test_builtin_modules_come_before_any_file_as_in_python_itself(namespace, tmp_path):
    (tmp_path / "time.py").write_text("raise AssertionError('never')\n")
    (tmp_path / "inference.py").write_text("import time, sys\nNOW = time.monotonic()\n")
    assert namespace(tmp_path).load("inference.py").NOW > 0


def test_classes_are_found_by_pickle_dataclasses_type_hints_and_importlib(tmp_path, opened):
    import pickle

    import torch

    home = tmp_path / "unpickles_its_class"
    (home / "code").mkdir(parents=True)
    for file in code("unpickles_its_class").glob("*.py"):
        (home / "code" / file.name).write_text(file.read_text())
    sys.path.insert(0, str(home / "code"))
    try:
        import net

        (home / "net.pkl").write_bytes(pickle.dumps(net.Net()))
        torch.save(net.Net(), home / "net.pt")
    finally:
        sys.path.remove(str(home / "code"))
        del sys.modules["net"]
        for cached in home.rglob("*.pyc"):
            cached.unlink()
    model = opened(script("unpickles_its_class", tmp_path))
    assert bodies(model.handler, ONE) == [b"[true,true,true]"]
    assert "net" not in sys.modules


def test_cloudpickle_sends_an_archives_function_by_value_or_name(namespace, tmp_path):
    import cloudpickle

    (tmp_path / "work.py").write_text("def twice(x):\n    return 2 * x\n")
    twice = namespace(tmp_path).load("work.py").twice
    assert cloudpickle.loads(cloudpickle.dumps(twice))(4) == 8
    assert cloudpickle.loads(cloudpickle.dumps(lambda x: twice(x) + 1))(4) == 9


def test_processes_that_an_archive_spawns_find_its_modules(baseline, write_archive, opened):
    code = (
        "import multiprocessing\nfrom concurrent.futures import ProcessPoolExecutor\nfrom work import twice\n"
        "def model_fn(d): ...\n"
        "def predict_fn(x, m):\n"
        "    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:\n"
        "        return pool.submit(twice, x).result()\n"
    )
    files = {"code/inference.py": code, "code/work.py": "import more\ndef twice(x):\n    return more.TWO * x\n"}
    model = opened(write_archive({**files, "code/more.py": "TWO = 2\n"}))
    assert bodies(model.handler, Payload(b"21")) == [b"42"]


def test_bare_names_are_found_during_the_load_only_and_by_its_thread_only(namespace, tmp_path):
    (tmp_path / "only_here.py").write_text("X = 1\n")
    home = namespace(tmp_path)
    private = home.load("only_here")
    with home.aliased():
        with ThreadPoolExecutor(1) as other, pytest.raises(ModuleNotFoundError):
            other.submit(__import__, "only_here").result()
        spec = private.__spec__
        assert __import__("only_here") is private
        assert private.__spec__ is spec
    assert "only_here" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        __import__("only_here")


def test_bare_names_of_installed_packages_keep_their_meaning_during_the_load(namespace, tmp_path):
    (tmp_path / "sndhdr_of_mine.py").write_text("")
    (tmp_path / "wave.py").write_text("MINE = True\n")
    (tmp_path / "sklearn.py").write_text("MINE = True\n")
    home = namespace(tmp_path)
    with home.aliased():
        assert not hasattr(__import__("wave"), "MINE")
        assert not hasattr(__import__("sklearn"), "MINE")


def test_folders_of_its_own_on_sys_path_become_part_of_home(opened, baseline):
    models = [opened("adds_to_sys_path"), opened("adds_to_sys_path")]
    assert [bodies(model.handler, ONE) for model in models] == [[b'"lib and lib"']] * 2
    assert not {"hidden", "hidden_too"} & set(sys.modules)
    assert not [path for path in sys.path if "archives" in path]


def test_modules_imported_past_the_namespace_do_not_stay(write_archive, opened):
    manifest = write_archive(
        {
            "code/inference.py": "import sys, os\nsys.path.insert(0, os.path.dirname(__file__))\nimport runpy\n"
            "import imp_by_other\ndef model_fn(d): return 1\ndef predict_fn(d, m): return m\n",
            "code/imp_by_other.py": "import builtins, pydoc\nX = pydoc.safeimport('sibling').X\n",
            "code/sibling.py": "X = 3\n",
        }
    )
    opened(manifest)
    assert "sibling" not in sys.modules
    sys.path[:] = [path for path in sys.path if not path.startswith(manifest.model_dir)]


def test_a_missing_program_is_told_from_a_module_it_lacks(opened):
    with pytest.raises(BadArchive, match=r"code/ has no inference.py; it has other.py"):
        opened("has_no_script")
    with pytest.raises(LoadFailed, match=r"No module named 'no_such_package_anywhere'; .*code/requirements.txt"):
        opened("lacks_a_package")


def test_a_missing_module_is_named_as_its_author_knows_it(write_archive, opened):
    for line in ("import parts.gone", "from parts import gone.more", "from .gone import x", "import parts.gone.more"):
        manifest = write_archive({"code/inference.py": f"{line}\n", "code/parts/__init__.py": ""})
        with pytest.raises(LoadFailed) as caught:
            opened(manifest)
        assert "archive" not in caught.value.message.replace("code/", ""), caught.value.message
    with pytest.raises(LoadFailed, match="ImportError: cannot import name 'x' from 'parts'"):
        opened(write_archive({"code/inference.py": "from parts import x\n", "code/parts/__init__.py": ""}))


def test_modules_that_import_each_other_in_a_circle_work(namespace, tmp_path):
    (tmp_path / "a.py").write_text("import b\nfrom b import late\nNAME = 'a'\n\ndef of_b():\n    return b.NAME\n")
    (tmp_path / "b.py").write_text("import a\nNAME = 'b'\n\ndef late():\n    return a.NAME\n")
    a = namespace(tmp_path).load("a")
    assert (a.of_b(), a.late()) == ("b", "a")


def test_two_threads_that_import_in_opposite_order_do_not_block_each_other(namespace, tmp_path):
    (tmp_path / "a.py").write_text("import time\ntime.sleep(0.05)\nimport b\n")
    (tmp_path / "b.py").write_text("import time\ntime.sleep(0.05)\nimport a\n")
    home = namespace(tmp_path)
    threads = [threading.Thread(target=home.load, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


def test_an_import_error_inside_leaves_no_half_module(namespace, tmp_path):
    (tmp_path / "inference.py").write_text("import json\nraise OSError('first time')\n")
    home = namespace(tmp_path)
    for _ in range(2):
        with pytest.raises(OSError, match="first time"):
            home.load("inference.py")


def test_a_program_may_lie_in_a_package_and_be_compiled_only(namespace, tmp_path):
    import py_compile

    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/__init__.py").write_text("")
    (tmp_path / "pkg/mod.py").write_text("import side\nX = side.X\n")
    (tmp_path / "side.py").write_text("X = 5\n")
    py_compile.compile(str(tmp_path / "pkg/mod.py"), str(tmp_path / "pkg/mod.pyc"))
    assert namespace(tmp_path).load("pkg.mod").X == 5
    (tmp_path / "pkg/mod.py").unlink()
    assert namespace(tmp_path).load("pkg/mod.py").X == 5


def test_nothing_is_written_into_the_archive(namespace, tmp_path):
    (tmp_path / "inference.py").write_text("")
    namespace(tmp_path).load("inference.py")
    assert [path.name for path in tmp_path.iterdir()] == ["inference.py"]


def test_alone_in_a_process_bare_names_are_found_on_any_thread_until_the_archive_goes(write_archive, monkeypatch):
    script = "def model_fn(model_dir):\n    return 1\n\ndef predict_fn(data, model):\n    return data\n"
    manifest = write_archive({"code/inference.py": script, "code/onlyhere.py": "class Net: pass\n"}, name="alone")
    monkeypatch.setattr(imports._finder, "alone", True)
    model = opening.open_model(manifest, Context("alone", "cpu"))
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(pickle.loads(b"conlyhere\nNet\n(tR.")))
    thread.start()
    thread.join()
    assert type(found[0]).__module__.endswith("_alone.onlyhere"), "the class that the archive's own code sees"
    model.close()
    assert "onlyhere" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(b"conlyhere\nNet\n(tR.")


def test_among_others_a_module_of_its_own_that_is_not_found_asks_for_a_process(write_archive):
    script = (
        "def model_fn(model_dir):\n    raise ModuleNotFoundError('x', name={0!r})\n\n"
        "def predict_fn(data, model):\n    return data\n"
    )
    for name, kind in (("onlyhere", NeedsOwnProcess), ("folder.inner", NeedsOwnProcess), ("elsewhere", LoadFailed)):
        files = {"code/inference.py": script.format(name), "code/onlyhere.py": "", "code/folder/inner.py": ""}
        with pytest.raises(LoadFailed) as raised:
            opening.open_model(write_archive(files, name=name), Context("m", "cpu"))
        assert type(raised.value) is kind
