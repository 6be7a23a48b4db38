"""Row C: both models in one archive on a single-model endpoint, the task chosen by a field of the payload."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from botocore.exceptions import ClientError

from tests.handlers.models import bert, gpt2
from tests.handlers.seq2seq import bart
from tests.rows.stand_in import Platform, single_model, tar

PROMPT = "the ship lies at"
ARTICLE = "the crew waits for the cook and for the tide"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is packed into one model.tar.gz: a folder a task, and none of ours in it."""
    home = tmp_path_factory.mktemp("models")
    gpt2(home / "text-generation")
    bart(home / "summarization", task_specific_params={"summarization": {"max_length": 20, "num_beams": 2}})
    bert(home / "mood", "BertForSequenceClassification", id2label={0: "calm", 1: "storm"})
    return home


@pytest.fixture(scope="module")
def platform(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The platform extracts the archive to <base>/model before the container starts."""
    base = tmp_path_factory.mktemp("ml")
    archive = tar(models, base / "model.tar.gz")
    (base / "model").mkdir()
    with tarfile.open(archive) as packed:
        packed.extractall(base / "model", filter="data")
    with single_model(base) as started:
        yield started


def ask(platform: Platform, value: Any, **more: str) -> Any:
    return platform.ask(None, json.dumps(value).encode(), **more)


def summary(models: Path) -> str:
    folder = models / "summarization"
    model = transformers.BartForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        ids = model.generate(**tokenizer(ARTICLE, return_tensors="pt"), max_length=20, num_beams=2)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def continued(models: Path) -> str:
    folder = models / "text-generation"
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    tokenizer = transformers.GPT2TokenizerFast.from_pretrained(folder)
    with torch.inference_mode():
        ids = model.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=20, do_sample=False)
    return str(tokenizer.decode(ids[0]))


def test_the_field_process_chooses_and_the_summary_and_the_text_come_back(platform: Platform, models: Path) -> None:
    assert ask(platform, {"process": "summarization", "input": ARTICLE}) == [{"summary_text": summary(models)}]
    assert ask(platform, {"process": "text-generation", "input": PROMPT}) == [{"generated_text": continued(models)}]
    assert {each["label"] for each in ask(platform, {"process": "mood", "input": ARTICLE})} == {"calm", "storm"}


def test_the_alias_the_header_and_the_tasks_own_names_choose_as_well(platform: Platform, models: Path) -> None:
    wanted = [{"summary_text": summary(models)}]
    assert ask(platform, {"task": "Summarization", "inputs": ARTICLE}) == wanted
    assert ask(platform, {"inputs": ARTICLE}, CustomAttributes="task=summarization") == wanted
    body = ARTICLE.encode()
    assert platform.ask(None, body, "text/plain", CustomAttributes="trace=7;task=summarization") == wanted
    assert len(ask(platform, {"task": "text_classification", "inputs": ARTICLE})) == 2


@pytest.mark.parametrize("body", [{"input": ARTICLE}, {"process": "translation", "input": ARTICLE}])
def test_an_unknown_task_is_an_error_that_names_those_there_are(platform: Platform, body: Any) -> None:
    with pytest.raises(ClientError) as caught:
        ask(platform, body)
    assert caught.value.response["OriginalStatusCode"] == 400
    assert "this model has the tasks mood, summarization, text-generation" in caught.value.response["OriginalMessage"]


def stream(platform: Platform, value: Any, **more: str) -> tuple[str, list[bytes]]:
    """``invoke_endpoint_with_response_stream``: the content type and the parts."""
    answer = platform.client.invoke_endpoint_with_response_stream(
        EndpointName="local", ContentType="application/json", Body=json.dumps(value).encode(), **more
    )
    return answer["ContentType"], [event["PayloadPart"]["Bytes"] for event in answer["Body"]]


def test_generated_text_is_streamed_through_the_response_stream_call(platform: Platform, models: Path) -> None:
    wanted = continued(models)
    ask_for = {"process": "text-generation", "inputs": PROMPT}
    kind, parts = stream(platform, {**ask_for, "stream": True})
    assert kind == "text/event-stream"
    events = [json.loads(event.removeprefix("data:")) for event in b"".join(parts).decode().split("\n\n")[:-1]]
    assert len(events) > 5
    assert PROMPT + "".join(event["token"]["text"] for event in events) == wanted
    assert events[-1]["generated_text"] == wanted
    kind, parts = stream(platform, ask_for, Accept="text/event-stream")
    assert kind == "text/event-stream" and b"".join(parts).startswith(b"data:{")
    kind, parts = stream(platform, {**ask_for, "stream": True}, Accept="text/plain")
    assert (kind, PROMPT + b"".join(parts).decode()) == ("text/plain; charset=utf-8", wanted)
    kind, parts = stream(platform, {"process": "summarization", "inputs": ARTICLE})
    assert (kind, len(parts)) == ("application/json", 1)


def test_what_fails_before_the_first_part_of_a_stream_is_a_model_error_with_its_status(platform: Platform) -> None:
    with pytest.raises(ClientError) as caught:
        stream(platform, {"process": "nobody", "inputs": PROMPT, "stream": True})
    assert caught.value.response["OriginalStatusCode"] == 400
