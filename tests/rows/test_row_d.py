"""Row D: archives with code/inference.py as AWS's Hugging Face multi-model example writes them, not a byte changed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from botocore.exceptions import ClientError

from tests.handlers.models import bert, gpt2
from tests.rows.stand_in import Platform, multi_model, tar
from tests.server import ROOT

SCRIPTS = Path(__file__).parent / "row_d"
SENTENCE = "This is a sentence, with a comma."
PROMPT = "the ship lies at"

#: What a container of its own would do: import the script, call its four functions.
DIRECTLY = """
import importlib.util, subprocess, sys
subprocess.call = subprocess.check_call = lambda *a, **k: 0  # the packages are there already
spec = importlib.util.spec_from_file_location("inference", sys.argv[1] + "/code/inference.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
model = script.model_fn(sys.argv[1])
value = script.input_fn(sys.stdin.read(), "text/csv")
import torch
with torch.no_grad():
    sys.stdout.write(script.output_fn(script.predict_fn(value, model), "application/json"))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/bertmodel and models/gptmodel as a notebook leaves them."""
    home = tmp_path_factory.mktemp("models")
    bert(home / "bertmodel" / "model", tokenizer=("vocab.txt", "tokenizer_config.json"), vocab_size=30522)
    gpt2(home / "gptmodel" / "model")
    for name in ("bertmodel", "gptmodel"):
        shutil.copytree(SCRIPTS / name, home / name / "code")
        for left in (home / name, home / name / "code"):
            (left / ".ipynb_checkpoints").mkdir()
            (left / ".ipynb_checkpoints" / "inference-checkpoint.py").write_text("raise SystemExit('a draft')")
    return home


@pytest.fixture(scope="module")
def platform(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    environ = {
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": "s3://bucket/models/",
        "SAGEMAKER_REGION": "us-east-1",
    }
    with multi_model(tmp_path_factory.mktemp("row"), **environ) as started:
        assert started.prefix is not None
        for name in ("bertmodel", "gptmodel"):
            tar(folders / name, started.prefix / f"{name}.tar.gz")
        yield started


def directly(folder: Path, body: bytes) -> str:
    done = subprocess.run(
        [sys.executable, "-c", DIRECTLY, str(folder)], input=body, capture_output=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def said(platform: Platform, target: str, body: bytes, content_type: str = "text/csv") -> str:
    text: str = platform.invoke(target, body, content_type)["Body"].decode()
    return text


def test_bert_answers_the_repr_of_its_output_as_the_script_does_by_itself(platform: Platform, folders: Path) -> None:
    answer = said(platform, "bertmodel.tar.gz", SENTENCE.encode())
    assert answer.startswith("BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=tensor([[[")
    assert answer == directly(folders / "bertmodel", SENTENCE.encode())


def test_gpt2_gets_the_prompt_with_its_quotation_marks_and_answers_a_list_as_text(
    platform: Platform, folders: Path
) -> None:
    body = json.dumps(PROMPT).encode()
    answer = said(platform, "gptmodel.tar.gz", body)
    assert answer.startswith("[{'generated_text': '\"the ship lies at\"")
    files = folders / "gptmodel" / "model"
    # By keyword, as the script has it, transformers 5 would make an empty vocabulary.
    tokenizer = transformers.GPT2Tokenizer(str(files / "vocab.json"), str(files / "merges.txt"))
    model = transformers.GPT2LMHeadModel.from_pretrained(files)
    pipeline = transformers.TextGenerationPipeline(model=model, tokenizer=tokenizer)
    assert answer == str(pipeline(body.decode(), do_sample=False, max_new_tokens=12))
    assert said(platform, "gptmodel.tar.gz", body, "application/json").startswith("[{'generated_text': 'the ship lies")


def test_pip_at_import_installed_nothing_and_the_log_says_what_to_do(platform: Platform) -> None:
    said(platform, "bertmodel.tar.gz", b"a")
    said(platform, "gptmodel.tar.gz", b"a")
    warned = [line for line in platform.server.log_lines() if "pip install transformers==4.17.0" in line["message"]]
    assert len(warned) >= 2
    assert all("name them in code/requirements.txt" in line["message"] for line in warned)


def test_a_model_is_updated_by_a_new_name(platform: Platform, folders: Path, tmp_path: Path) -> None:
    assert platform.prefix is not None
    before = said(platform, "bertmodel.tar.gz", SENTENCE.encode())
    shutil.copytree(folders / "bertmodel", tmp_path / "v2")
    script = tmp_path / "v2" / "code" / "inference.py"
    script.write_text(script.read_text().replace("return str(prediction)", "return str(prediction[1].shape)"))
    tar(tmp_path / "v2", platform.prefix / "bertmodel_v2.tar.gz")
    assert said(platform, "bertmodel_v2.tar.gz", SENTENCE.encode()) == "torch.Size([1, 32])"
    assert said(platform, "bertmodel.tar.gz", SENTENCE.encode()) == before


def test_the_same_weights_without_code_answer_vectors_as_json(
    platform: Platform, folders: Path, tmp_path: Path
) -> None:
    assert platform.prefix is not None
    shutil.copytree(folders / "bertmodel" / "model", tmp_path / "plain" / "model")
    tar(tmp_path / "plain", platform.prefix / "bertvectors.tar.gz")
    texts = [SENTENCE, "Another one."]
    vectors = np.asarray(platform.ask("bertvectors.tar.gz", json.dumps({"inputs": texts}).encode()))
    model = transformers.BertModel.from_pretrained(folders / "bertmodel" / "model").eval()
    tokenizer = transformers.BertTokenizer.from_pretrained(folders / "bertmodel" / "model")
    with torch.no_grad():
        for text, vector in zip(texts, vectors, strict=True):
            wanted = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
            np.testing.assert_allclose(vector, wanted, atol=1e-5)


TRANSFORM = """
import json

def model_fn(model_dir, context):
    return {"where": context.system_properties["model_dir"] == model_dir, "gpu": context.system_properties["gpu_id"]}

def transform_fn(model, data, content_type, accept, context):
    return json.dumps({**model, "got": json.loads(data), "type": content_type, "accept": accept}), accept
"""
REMOVED = """
from transformers import pipeline

def model_fn(model_dir):
    return pipeline("summarization", model=model_dir)

def predict_fn(data, model):
    return model(data)
"""


def packed_script(platform: Platform, home: Path, name: str, code: str) -> str:
    (home / name / "code").mkdir(parents=True)
    (home / name / "code" / "inference.py").write_text(code)
    assert platform.prefix is not None
    return tar(home / name, platform.prefix / f"{name}.tar.gz").name


def test_transform_fn_and_context_work_as_the_toolkit_has_them(platform: Platform, tmp_path: Path) -> None:
    target = packed_script(platform, tmp_path, "transform", TRANSFORM)
    answer = platform.ask(target, b"[1, 2]", "application/json; charset=utf-8", Accept="application/json")
    wanted = {"where": True, "gpu": None, "got": [1, 2], "type": "application/json", "accept": "application/json"}
    assert answer == wanted


def test_a_pipeline_that_transformers_5_no_longer_has_is_refused_with_what_to_do(
    platform: Platform, tmp_path: Path
) -> None:
    target = packed_script(platform, tmp_path, "removed", REMOVED)
    with pytest.raises(ClientError) as caught:
        platform.invoke(target, b"{}", "application/json")
    assert caught.value.response["OriginalStatusCode"] == 500
    assert "transformers<5 in code/requirements.txt" in caught.value.response["OriginalMessage"]
