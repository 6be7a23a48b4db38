"""``berth check`` on everything that would not serve: the fault and the mend, in one sentence, and exit status 1."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from container.cli import main
from tests.cli import broken

#: maker in ``broken`` -> what must be said of the fault, and of the mend. Seen without running anything of the archive.
LAYOUTS = {
    "is_a_zip": ("a zip", "pack with tar -czf"),
    "is_bzip2": ("bzip2", "pack with tar -czf"),
    "is_text": ("is text", "has a download been refused?"),
    "is_truncated": ("truncated or corrupt", "copy it anew or pack again"),
    "is_empty": ("holds no files", "tar -czf model.tar.gz -C FOLDER ."),
    "holds_a_symlink": ("'code/inference.py' is a symlink", "pack the file itself"),
    "holds_a_hard_link": ("'b' is a hard link", "pack the file itself"),
    "leads_out": ("'../../etc/cron.d/job' leads out of the archive", "pack with tar -C FOLDER ."),
    "is_absolute": ("'/etc/passwd' leads out of the archive", "pack with tar -C FOLDER ."),
    "holds_a_device": ("'null' is a device", "files and folders only"),
    "is_a_bomb": ("under 1/200 of its contents", "no model but a bomb"),
    "is_packed_with_backslashes": ("one name with backslashes", "use `berth pack`"),
    "lies_two_folders_down": ("the model lies in export/model", "pack with `berth pack` or tar from there"),
    "misspells_its_script": ("code/ holds Inference.py", "name the script inference.py"),
    "lacks_a_shard_and_the_index": ("is one of 3 files", "model-00002-of-00003.safetensors is not in the archive"),
    "lies_one_folder_down": ("one folder down in mymodel", "tar -C mymodel -czf model.tar.gz ."),
    "has_its_script_at_the_root": ("inference.py lies at the root", "belongs into code/"),
    "names_its_script_otherwise": ("holds serve.py but neither inference.py", "SAGEMAKER_PROGRAM"),
    "has_no_weights": ("config.json has no weights beside it", "model.safetensors or pytorch_model.bin"),
    "has_weights_of_tensorflow": ("tf_model.h5 is not PyTorch's", "convert it"),
    "has_a_git_lfs_pointer": ("is a git-lfs pointer", "git lfs pull"),
    "has_weights_and_nothing_else": ("there are weights, but no config.json", "no code/inference.py to load them"),
    "is_an_archive_in_an_archive": ("inner.tar.gz is an archive in an archive", "pack what is in it"),
    "lacks_a_shard": ("weights that are not in the archive", "model-00002-of-00002.safetensors"),
    "holds_an_adapter": ("is a LoRA adapter's, which would be left out", "merge it into the weights"),
    "has_an_unknown_network": ("the task of MysteryForEverything is not known", '{"task": "summarization"}'),
    "misspells_a_setting": ("unknown key timeout", "did you mean timeout_s?"),
    "has_a_broken_berth_json": ("berth.json is not JSON", "byte 1"),
    "asks_for_an_hour": ("timeout_s is 7200.0", "at most 3600 seconds"),
    "names_a_handler_that_is_not_there": ("'serving:Mine'", "code/serving.py is not in the archive"),
    "names_no_service": ("names no model.handler", '"handler": "service.py:handle"'),
    "has_a_part_that_is_no_model": ("one and two are models, docs is none", "each sub-folder must be one"),
    "has_no_version_folder": ("named by a version number", "1/model.pt"),
    "leads_out_by_a_link": ("extra.json is a symlink that leads out", "put the file itself there"),
}

#: name in ``broken.LOADS`` -> phase, fault, mend.
LOADS = {
    "does_not_parse": ("load", "SyntaxError: expected ':'", "(inference.py, line 1)"),
    "lacks_a_package": ("load", "No module named 'fasttext_of_old'", "name it in code/requirements.txt"),
    "lacks_a_file_of_its_own": ("load", "No module named 'helpers'", "put it into code/"),
    "lacks_predict_fn": ("load", "has no predict_fn (it has model_fn)", "config.json in the archive names"),
    "mixes_styles": ("load", "has transform_fn beside predict_fn", "takes the place of all three"),
    "takes_too_much": ("load", "input_fn(data, content_type, more, and_more)", "it is given (data, content_type)"),
    "opens_by_a_relative_name": ("load", "No such file or directory: 'synset.txt'", "join it to model_dir"),
    "raises_at_load": ("load", "failed to load", "RuntimeError: no GPU, no model"),
    "exits_at_import": ("load", "failed to load", "SystemExit: call me as a script"),
    "crashes_at_load": ("load", "ended its process while loading", "killed by SIGABRT"),
    "uses_a_pipeline_that_is_gone": ("load", "no longer has pipeline('summarization')", "transformers<5"),
    "has_no_handler_class": ("load", "no subclass of container.handler.Handler", "derive its class from that"),
    "has_two_handler_classes": ("load", "(Mine, Other)", '{"handler": "handler:NAME"}'),
    "answers_too_few": (
        "batch",
        "its own example is not answered: predict returned 1 outputs",
        "one for each, in order",
    ),
    "refuses_its_own_example": ("answer", "its own example is not answered", "ValueError: I want a cat"),
    "answers_with_an_object": ("answer", "cannot be written", "not as application/json"),
    "forgets_when_it_sinks": ("sink", "sunk to the disk and risen again, it answers differently", "between calls"),
    "has_truncated_weights": ("load", "model.safetensors is cut off", "end at byte"),
    "has_no_tokenizer": ("load", "no tokenizer", "tokenizer.json"),
    "has_no_tokenizer_for_transformers": ("load", "no tokenizer", "tokenizer.json"),
    "has_the_tokenizer_of_another": ("load", "the tokenizer has 157 words, the network 57", "of different models"),
    "is_not_utf8": ("load", "null bytes", "not UTF-8"),
    "opens_a_pickled_module": ("load", "objects (torch.nn.modules.linear.Linear)", "weights_only=False"),
    "needs_a_gpu": ("load", "this server has no GPU", "leave .cuda() out"),
    "downloads": ("load", "huggingface.co", "put the files into the archive"),
    "asks_for_packages_in_vain": ("load", "Invalid requirement: 'numpy=1.26'", "line 1 of code/requirements.txt"),
    "is_a_pickled_booster": ("load", "is a pickled Booster", "booster.save_model"),
    "is_a_pickled_module": ("load", "pytorch_model.bin cannot be read as plain weights", "as safetensors"),
}


def test_every_broken_thing_has_its_line_here() -> None:
    makers = {name for name, made in vars(broken).items() if callable(made) and made.__module__ == broken.__name__}
    assert {name for name in makers if not name.startswith("_")} == LAYOUTS.keys()
    assert broken.LOADS.keys() == LOADS.keys()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_that_is_none_is_refused_by_its_fault_and_its_mend(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = getattr(broken, name)(tmp_path)
    assert main(["check", str(path)]) == 1
    said = capsys.readouterr().out
    verdict, sentence, *more = said.splitlines()
    assert (verdict, more) == (f"would not serve  {path}", [])
    for part in LAYOUTS[name]:
        assert part in sentence
    assert "Traceback" not in said and "berth-check-" not in said


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """All of LOADS through one command, the crash among them."""
    home = tmp_path_factory.mktemp("broken")
    paths = []
    for name, make in broken.LOADS.items():
        (home / name).mkdir()
        paths.append(str(make(home / name)))
    out = io.StringIO()
    with redirect_stdout(out):
        assert main(["check", *paths, "--json"]) == 1
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["path"] for line in lines] == paths
    yield dict(zip(broken.LOADS, lines, strict=True))


@pytest.mark.parametrize("name", LOADS)
def test_what_fails_when_loaded_or_asked_is_told_by_its_fault_and_its_mend(
    name: str, reports: dict[str, dict[str, Any]]
) -> None:
    fault = reports[name]["fault"]
    phase, *parts = LOADS[name]
    assert fault["phase"] == phase, fault
    for part in parts:
        assert part in fault["message"]
    assert "\n" not in fault["message"] and "checked-" not in fault["message"] and "\x1b" not in fault["message"]
