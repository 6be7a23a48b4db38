"""What moto does not play, with botocore's Stubber: updates, failures with their log, refusals."""

from __future__ import annotations

import argparse
import dataclasses
import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import boto3
import pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber

from container.cli import aws, deployment, endpoint, invoke, sagemaker, shelf
from tests.cli.test_deployment import WISH

NOW = datetime(2026, 1, 1)
CONFIG = deployment.config(WISH)["EndpointConfigName"]


class Session:
    """A boto3 session whose clients answer from a script, in order, and nothing else."""

    def __init__(self, *services: str) -> None:
        whoever = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "eu-west-1"}
        self.clients = {name: boto3.client(name, **whoever) for name in services}
        self.stubs = {name: Stubber(client) for name, client in self.clients.items()}

    def client(self, name: str) -> Any:
        return self.clients[name]

    @contextmanager
    def playing(self) -> Iterator[None]:
        for stub in self.stubs.values():
            stub.activate()
        yield
        for stub in self.stubs.values():
            stub.assert_no_pending_responses()


def seen(status: str, config: str = CONFIG, **more: Any) -> dict[str, Any]:
    return {
        "EndpointName": "cats",
        "EndpointArn": "arn:aws:sagemaker:eu-west-1:123456789012:endpoint/cats",
        "EndpointConfigName": config,
        "EndpointStatus": status,
        "CreationTime": NOW,
        "LastModifiedTime": NOW,
        **more,
    }


def waiting(*answers: dict[str, Any], limit_s: float = 60) -> str | None:
    session = Session("sagemaker")
    for answer in answers:
        session.stubs["sagemaker"].add_response("describe_endpoint", answer, {"EndpointName": "cats"})
    with session.playing():
        return sagemaker.wait(session.client("sagemaker"), WISH, limit_s, sleep=lambda _: None)


def test_waiting_ends_when_the_endpoint_is_in_service_with_what_was_wished() -> None:
    assert waiting(seen("Creating"), seen("Creating"), seen("InService")) is None


def test_a_terminal_sees_the_seconds_pass_and_a_log_one_line_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    said = {}
    for out in (io.StringIO(), Terminal()):
        monkeypatch.setattr("sys.stderr", out)
        assert waiting(seen("Creating"), seen("Creating"), seen("InService")) is None
        said[out.isatty()] = out.getvalue()
    assert said[False] == "      0 s  Creating\n     20 s  InService\n"
    assert said[True].split("\r\x1b[2K") == ["", "      0 s  Creating", "     10 s  Creating", "     20 s  InService\n"]


def test_an_upload_shows_a_bar_on_a_terminal_and_one_line_in_a_log() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for out, last in ((Terminal(), "a.tar.gz [" + "#" * 30 + "] 4 of 4 MiB"), (io.StringIO(), "a.tar.gz: 4.0 MiB in")):
        with shelf.Bar("a.tar.gz", 4 << 20, out) as bar:
            for _ in range(4):
                bar.add(1 << 20)
        assert last in out.getvalue().splitlines()[-1].rpartition("\r")[2]
        assert ("[" + "#" * 15 + " " in out.getvalue()) is out.isatty()


def test_a_rollback_is_told_apart_from_success() -> None:
    wrong = waiting(seen("Updating"), seen("InService", "cats-00000000", FailureReason="no ping"))
    assert wrong == "cats was rolled back: no ping"


def test_a_failure_says_awss_reason_and_a_long_wait_that_it_goes_on() -> None:
    assert waiting(seen("Failed", FailureReason="image not found")) == "cats is Failed: image not found"
    still = waiting(seen("Creating"), seen("Creating"), limit_s=10)
    assert still is not None
    assert "still Creating after 10 s" in still


def test_an_update_is_one_call_with_the_new_configuration() -> None:
    bigger = dataclasses.replace(WISH, instances=2, max_instances=5)
    config = deployment.config(bigger)
    session = Session("sagemaker")
    stub = session.stubs["sagemaker"]
    stub.add_response(
        "describe_model", {"ModelName": "m", "CreationTime": NOW, "ModelArn": "arn:aws:sagemaker:model/m"}
    )
    stub.add_client_error(
        "describe_endpoint_config", "ValidationException", 'Could not find endpoint configuration "x".'
    )
    stub.add_response("describe_endpoint", seen("InService"))
    stub.add_response("create_endpoint_config", {"EndpointConfigArn": "arn:aws:sagemaker:endpoint-config/c"}, config)
    stub.add_response(
        "update_endpoint",
        {"EndpointArn": "arn:aws:sagemaker:eu-west-1:123456789012:endpoint/cats"},
        {
            "EndpointName": "cats",
            "EndpointConfigName": config["EndpointConfigName"],
            "RetainAllVariantProperties": True,
        },
    )
    with session.playing():
        found = sagemaker.look(session.client("sagemaker"), bigger)
        steps = deployment.steps(bigger, found)
        sagemaker.carry_out(session, steps, dry_run=False)
    assert [step.operation for step in steps] == ["create_endpoint_config", "update_endpoint"]


def test_a_validation_error_that_is_no_absence_is_not_taken_for_one() -> None:
    session = Session("sagemaker")
    session.stubs["sagemaker"].add_client_error("describe_model", "ValidationException", "1 validation error detected")
    with session.playing(), pytest.raises(session.client("sagemaker").exceptions.ClientError):
        sagemaker.describe(session.client("sagemaker"), "describe_model", ModelName="m")


def test_the_last_words_of_a_container_are_its_newest_log_lines() -> None:
    session = Session("logs")
    group = "/aws/sagemaker/Endpoints/cats"
    session.stubs["logs"].add_response(
        "describe_log_streams",
        {"logStreams": [{"logStreamName": "AllTraffic/i-1"}]},
        {"logGroupName": group, "orderBy": "LastEventTime", "descending": True, "limit": 1},
    )
    session.stubs["logs"].add_response(
        "get_log_events",
        {"events": [{"message": "starting\n"}, {"message": "giving up: no torch\n"}]},
        {"logGroupName": group, "logStreamName": "AllTraffic/i-1", "limit": 20, "startFromHead": False},
    )
    with session.playing():
        assert sagemaker.last_words(session, "cats") == ["starting", "giving up: no torch"]


def test_without_a_log_there_are_no_last_words() -> None:
    session = Session("logs")
    session.stubs["logs"].add_client_error("describe_log_streams", "ResourceNotFoundException", "no such group")
    with session.playing():
        assert sagemaker.last_words(session, "cats") == []


def test_deleting_sweeps_what_earlier_wishes_left_and_nothing_of_others() -> None:
    session = Session("sagemaker")
    stub = session.stubs["sagemaker"]
    stub.add_client_error("describe_endpoint", "ValidationException", 'Could not find endpoint "cats".')
    configs = [{"EndpointConfigName": name} for name in ("cats-0123abcd", "cats-dogs-0123abcd", "cats-mine")]
    arn = "arn:aws:sagemaker:eu-west-1:123456789012:x"
    each = {"EndpointConfigArn": arn, "CreationTime": NOW}
    stub.add_response("list_endpoint_configs", {"EndpointConfigs": [config | each for config in configs]})
    models = [{"ModelName": name, "ModelArn": arn, "CreationTime": NOW} for name in ("cats-0123abcd", "cats-89abcdef")]
    stub.add_response("list_models", {"Models": models})
    with session.playing():
        calls = endpoint.deletion(session.client("sagemaker"), "cats")
    assert [(call.operation, list(call.arguments.values())) for call in calls] == [
        ("delete_endpoint_config", ["cats-0123abcd"]),
        ("delete_model", ["cats-0123abcd"]),
        ("delete_model", ["cats-89abcdef"]),
    ]


def test_an_error_of_the_model_is_shown_in_the_models_words() -> None:
    session = Session("sagemaker-runtime")
    session.stubs["sagemaker-runtime"].add_client_error(
        "invoke_endpoint",
        "ModelError",
        "Received server error (500) from primary ...",
        response_meta={},
        modeled_fields={"OriginalStatusCode": 500, "OriginalMessage": "the model failed: too short"},
    )
    with session.playing(), pytest.raises(aws.errors()) as caught:
        session.client("sagemaker-runtime").invoke_endpoint(EndpointName="cats", Body=b"")
    assert invoke.explain(caught.value) == "the model answered 500: the model failed: too short"
    caught.value.response["OriginalMessage"] = "\x1b[2J"
    assert invoke.explain(caught.value) == "the model answered 500: \\u001b[2J"


def test_what_is_invoked_is_what_was_typed() -> None:
    options = argparse.Namespace(name="cats", payload="a.JPG", content_type=None, target="a.tar.gz", accept=None)
    expected = {"EndpointName": "cats", "ContentType": "image/jpeg", "TargetModel": "a.tar.gz"}
    assert invoke.arguments(options) == expected
    session = Session("sagemaker-runtime")
    answer = {"Body": StreamingBody(io.BytesIO(b"[1]"), 3), "ContentType": "application/json"}
    session.stubs["sagemaker-runtime"].add_response("invoke_endpoint", answer, {**expected, "Body": b"x"})
    with session.playing():
        said = session.client("sagemaker-runtime").invoke_endpoint(**invoke.arguments(options), Body=b"x")
    assert said["Body"].read() == b"[1]"


def test_a_refusal_names_the_call_and_says_what_is_lacking() -> None:
    session = Session("sagemaker")
    session.stubs["sagemaker"].add_client_error("create_model", "AccessDeniedException", "not authorized")
    with session.playing(), pytest.raises(aws.errors()) as caught:
        session.client("sagemaker").create_model(ModelName="m", ExecutionRoleArn="arn:aws:iam::123456789012:role/r")
    said = aws.explain(caught.value)
    assert said.startswith("AWS refused CreateModel: AccessDeniedException: not authorized")
    assert "lacks this permission" in said
