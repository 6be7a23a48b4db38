"""The stand-in in front of the real server, which here leaves every eviction to the platform."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from local_test.processes import Process, free_port

SCRIPT = b"""
import json, os, torch
from torch import nn

def model_fn(model_dir):
    number = float(open(os.path.join(model_dir, "number.txt")).read())
    model = nn.Linear(700, 700)  # 1.87 MiB
    nn.init.constant_(model.weight, number)  # or five would take the bytes of one
    nn.init.constant_(model.bias, number)
    return model

def input_fn(body, content_type):
    words = json.loads(body)
    if words == "raise":
        raise RuntimeError("the script says no")
    return torch.zeros(1, 700)

def predict_fn(data, model):
    return model(data)[0, 0].item()

def output_fn(number, accept):
    return json.dumps(number)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory, write_archive):
    """Return (client, url of the server) of an endpoint with five archives, of which two fit."""
    place = tmp_path_factory.mktemp("berth")
    for number in range(5):
        files = {"code/inference.py": SCRIPT, "number.txt": str(number).encode()}
        write_archive(place / "prefix" / f"{number}.tar.gz", files)
    write_archive(place / "prefix" / "broken.tar.gz", {"code/inference.py": b"def model_fn(:"})
    write_archive(place / "prefix" / "empty.tar.gz", {"README": b"nothing to serve"})
    (place / "ml" / "models").mkdir(parents=True)
    port = free_port()
    own = {
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "SAGEMAKER_BASE_DIR": str(place / "ml"),
        "SAGEMAKER_MULTI_MODEL": "true",
        "BERTH_STATE_DIR": str(place / "state"),
        "BERTH_MEMORY_LIMIT": "5MiB",
        "BERTH_EVICTION": "platform",
    }
    url = f"http://127.0.0.1:{port}"
    arguments = ["--models", str(place / "prefix"), "--base", str(place / "ml"), "--container", url]
    with ExitStack() as stack:
        server = Process("the server", ["container", "serve"], {**os.environ, **own}, place / "server.log")
        stack.callback(server.stop)
        server.wait_ready(f"{url}/ping", 60)
        endpoint = Process("the endpoint", ["local_test.endpoint", *arguments], os.environ, place / "endpoint.log")
        stack.callback(endpoint.stop)
        client = boto3.client(
            "sagemaker-runtime",
            endpoint_url=endpoint.first_line(),
            region_name="us-east-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
            config=Config(retries={"total_max_attempts": 1}, max_pool_connections=20),
        )
        stack.callback(client.close)
        yield client, place


def ask(client, target, words="hello"):
    answer = client.invoke_endpoint(
        EndpointName="local", TargetModel=target, ContentType="application/json", Body=json.dumps(words)
    )
    return json.loads(answer["Body"].read())


def test_every_model_answers_though_only_two_fit_and_the_platform_chose_who_went(served):
    client, place = served
    assert [ask(client, f"{i}.tar.gz") for i in (0, 1, 2, 3, 4, 0)] == [0, 1, 2, 3, 4, 0]
    log = (place / "endpoint.log").read_text()
    assert "507: unloading" in log


def test_callers_of_more_models_than_fit_all_get_the_right_answer(served):
    client, _ = served
    wanted = [i % 5 for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: ask(client, f"{i}.tar.gz"), wanted)) == wanted


def test_a_script_that_raises_is_a_model_error_with_the_servers_own_words(served):
    client, _ = served
    with pytest.raises(ClientError) as caught:
        ask(client, "1.tar.gz", "raise")
    assert caught.value.response["Error"]["Code"] == "ModelError"
    assert caught.value.response["OriginalStatusCode"] == 500
    assert "the script says no" in caught.value.response["OriginalMessage"]


@pytest.mark.parametrize("target, status", [("broken.tar.gz", 500), ("empty.tar.gz", 400)])
def test_an_archive_that_is_no_model_is_a_model_error_and_the_others_answer(served, target, status):
    client, _ = served
    for _ in range(2):
        with pytest.raises(ClientError) as caught:
            ask(client, target)
        assert caught.value.response["OriginalStatusCode"] == status
    assert ask(client, "3.tar.gz") == 3
