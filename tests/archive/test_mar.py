import json

import pytest

from container.archive.describe import describe
from container.archive.manifest import Batch
from container.errors import BadArchive


def write(folder, manifest=None, config="", home="", **berth):
    home = folder / home
    (home / "MAR-INF").mkdir(parents=True)
    (home / "service.py").write_text("")
    model = {"handler": "service.py:handle"} if manifest is None else manifest
    (home / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"model": model}))
    if config:
        (home / "model-config.yaml").write_text(config)
    if berth:
        (folder / "berth.json").write_text(json.dumps(berth))
    return folder


def test_a_batch_is_one_request_unless_the_archive_says_more(tmp_path):
    found = describe(write(tmp_path))
    assert (found.kind, found.program, found.code_dir) == ("mar", "service.py:handle", str(tmp_path))
    assert (found.settings.batch, found.settings.timeout_s) == (Batch(1, 0), 50.0)


def test_the_configuration_wins_over_the_manifest_and_berth_json_over_both(tmp_path):
    manifest = {"handler": "service", "batchSize": 2, "maxBatchDelay": 7, "configFile": "mine.yaml"}
    folder = write(tmp_path / "a", manifest)
    (folder / "mine.yaml").write_text("batchSize: 4\nresponseTimeout: 300\nminWorkers: 1\nuseVenv: true\n")
    found = describe(folder).settings
    assert (found.batch, found.timeout_s) == (Batch(4, 7), 300.0)
    folder = write(tmp_path / "b", config="batchSize: 4", batch={"max_size": 8}, timeout_s=20)
    found = describe(folder).settings
    assert (found.batch, found.timeout_s) == (Batch(8, 0), 20.0)


def test_an_archive_may_lie_one_folder_down(tmp_path):
    found = describe(write(tmp_path, home="sam"))
    assert (found.kind, found.model_dir, found.code_dir) == ("mar", str(tmp_path / "sam"), str(tmp_path / "sam"))


def test_requirements_of_a_service_are_its_roots(tmp_path):
    folder = write(tmp_path)
    (folder / "requirements.txt").write_text("captum\n")
    assert describe(folder).requirements == str(folder / "requirements.txt")


@pytest.mark.parametrize(
    ("config", "words"),
    [("batchSize: many", "batchSize"), ("batchSize: 0", "from 1"), ("- 1", "names with values"), ("a: [", "YAML")],
)
def test_a_configuration_that_is_none_is_refused_in_words(tmp_path, config, words):
    with pytest.raises(BadArchive, match=words):
        describe(write(tmp_path, config=config))


def test_manifests_that_name_no_handler_or_are_no_json(tmp_path):
    with pytest.raises(BadArchive, match=r"model\.handler"):
        describe(write(tmp_path / "a", {}))
    folder = write(tmp_path / "b")
    for broken in ("{", "[]"):
        (folder / "MAR-INF" / "MANIFEST.json").write_text(broken)
        with pytest.raises(BadArchive, match="MANIFEST"):
            describe(folder)


def test_a_service_of_berth_json_must_be_there(tmp_path):
    (tmp_path / "berth.json").write_text('{"handler": "service.py:handle"}')
    with pytest.raises(BadArchive, match=r"service\.py is not in the archive"):
        describe(tmp_path)


def test_a_service_of_the_image_leaves_archives_with_code_of_their_own_alone(tmp_path):
    service = "/home/model-server/model_handler.py:handle"
    found = describe(write(tmp_path / "own"), service=service)
    assert found.program == "service.py:handle"
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "synset.txt").write_text("cat")
    found = describe(bare, service=service)
    assert (found.kind, found.code_dir, found.program) == ("mar", "/home/model-server", "model_handler.py:handle")
    (bare / "berth.json").write_text('{"task": "embeddings"}')
    assert describe(bare, service=service).kind == "folder"
