"""The verbs against moto's S3, SageMaker, IAM and autoscaling, as a person types them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from container import cli
from tests.cli.cloud import NOBODY, moto_cloud

TRUST = json.dumps({"Version": "2012-10-17", "Statement": []})


@pytest.fixture
def cloud() -> Iterator[dict[str, str]]:
    with moto_cloud() as where:
        boto3.client("s3").create_bucket(
            Bucket="models", CreateBucketConfiguration={"LocationConstraint": where["AWS_DEFAULT_REGION"]}
        )
        boto3.client("iam").create_role(RoleName="Serving", Path="/service-role/", AssumeRolePolicyDocument=TRUST)
        yield where


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    folder = tmp_path / "archives"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.tar.gz").write_bytes(b"a" * 1000)
    (folder / "deep" / "b.tar.gz").write_bytes(b"b" * 2000)
    (folder / "a.recipe").write_text("not an archive")
    return folder


def deploy(archives: Path, *more: str) -> int:
    first = ["deploy", "cats", "--image", "host/berth:1", "--role", "Serving", "--s3", "s3://models/cats"]
    return cli.main([*first, "--wait", "60", "--archives", str(archives), *more])


def state() -> dict[str, list[str]]:
    """Everything that is in this AWS, by name."""
    sagemaker, s3 = boto3.client("sagemaker"), boto3.client("s3")
    scaling = boto3.client("application-autoscaling").describe_scalable_targets(ServiceNamespace="sagemaker")
    return {
        "objects": [each["Key"] for each in s3.list_objects_v2(Bucket="models").get("Contents", [])],
        "models": [each["ModelName"] for each in sagemaker.list_models()["Models"]],
        "configs": [each["EndpointConfigName"] for each in sagemaker.list_endpoint_configs()["EndpointConfigs"]],
        "endpoints": [each["EndpointName"] for each in sagemaker.list_endpoints()["Endpoints"]],
        "scaled": [each["ResourceId"] for each in scaling["ScalableTargets"]],
    }


EMPTY: dict[str, list[str]] = {"objects": [], "models": [], "configs": [], "endpoints": [], "scaled": []}


def test_deploy_twice_then_list_then_delete_twice(
    cloud: dict[str, str], archives: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy(archives, "--max-instances", "3", "--env", "BERTH_SHARING=off") == 0
    said = capsys.readouterr()
    assert said.out == "cats\n"
    first = state()
    assert first["objects"] == ["cats/a.tar.gz", "cats/deep/b.tar.gz"]
    assert [len(names) for names in first.values()] == [2, 1, 1, 1, 1]
    made = boto3.client("sagemaker").describe_model(ModelName=first["models"][0])
    assert made["ExecutionRoleArn"] == "arn:aws:iam::123456789012:role/service-role/Serving"
    assert made["PrimaryContainer"]["ModelDataUrl"] == "s3://models/cats/"
    assert made["PrimaryContainer"]["Mode"] == "MultiModel"
    policies = boto3.client("application-autoscaling").describe_scaling_policies(ServiceNamespace="sagemaker")
    assert policies["ScalingPolicies"][0]["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 60

    assert deploy(archives, "--max-instances", "3", "--env", "BERTH_SHARING=off") == 0
    again = capsys.readouterr().err
    assert "a.tar.gz: is there already" in again
    assert "create_" not in again
    assert state() == first

    assert cli.main(["endpoint", "list"]) == 0
    assert "cats" in (listed := capsys.readouterr().out)
    assert "1 x ml.m5.xlarge" in listed

    assert cli.main(["endpoint", "delete", "cats"]) == 0
    assert state() == EMPTY | {"objects": first["objects"]}
    assert cli.main(["endpoint", "delete", "cats"]) == 0
    assert "there is no endpoint cats" in capsys.readouterr().err


def test_a_dry_run_prints_the_calls_and_makes_none(
    cloud: dict[str, str], archives: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy(archives, "--dry-run", "--max-instances", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "s3.upload_file",
        "s3.upload_file",
        "sagemaker.create_model",
        "sagemaker.create_endpoint_config",
        "sagemaker.create_endpoint",
        "application-autoscaling.register_scalable_target",
        "application-autoscaling.put_scaling_policy",
    ]
    assert state() == EMPTY


def test_an_archive_with_other_content_is_not_replaced_unless_told(
    cloud: dict[str, str], archives: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy(archives) == 0
    (archives / "a.tar.gz").write_bytes(b"new")
    assert deploy(archives) == 1
    assert "s3://models/cats/a.tar.gz is there with other content" in capsys.readouterr().err
    assert deploy(archives, "--overwrite") == 0
    stored = boto3.client("s3").get_object(Bucket="models", Key="cats/a.tar.gz")
    assert stored["Body"].read() == b"new"
    assert stored["Metadata"]["berth-sha256"] == hashlib.sha256(b"new").hexdigest()


def test_a_large_archive_goes_up_in_parts_and_arrives_whole(cloud: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "large.tar.gz"
    file.write_bytes(os.urandom(1 << 20) * 66)
    assert deploy(file) == 0
    head = boto3.client("s3").head_object(Bucket="models", Key="cats/large.tar.gz")
    assert head["ETag"].strip('"').endswith("-3")
    assert head["ContentLength"] == 66 << 20
    assert state()["objects"] == ["cats/large.tar.gz"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--role", "Nobody"), "NoSuchEntity"),
        (("--s3", "s3://nothing-here/x"), "Not Found|NoSuchBucket"),
        (("--s3", "models/x"), "s3://bucket/folder"),
        (("--env", "A"), "KEY=VALUE"),
        (("--startup-timeout", "5"), "60 to 3600"),
        (("--archives", "/nowhere"), "/nowhere is not there"),
        (("--archives", __file__), "is not a .tar.gz"),
    ],
)
def test_each_mistake_is_a_sentence_and_leaves_nothing(
    cloud: dict[str, str], archives: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], words: str
) -> None:
    import re

    assert deploy(archives, *more) == 1
    said = capsys.readouterr().err
    assert re.search(words, said), said
    assert "Traceback" not in said
    assert {name: names for name, names in state().items() if name != "objects"} == {
        name: [] for name in EMPTY if name != "objects"
    }


def test_without_credentials_or_a_region_it_says_which(
    monkeypatch: pytest.MonkeyPatch, archives: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in NOBODY.items():
        monkeypatch.setenv(name, value)
    assert deploy(archives) == 1
    assert "no AWS region" in capsys.readouterr().err
    assert deploy(archives, "--region", "eu-west-1") == 1
    assert "no AWS credentials" in capsys.readouterr().err


def test_invoke_sends_a_file_with_its_type_and_prints_what_the_model_says(
    cloud: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, write_through=True))
    (tmp_path / "body.csv").write_text("1,2\n")
    assert cli.main(["invoke", "cats", str(tmp_path / "body.csv"), "--target", "a.tar.gz"]) == 0
    assert out.getvalue() == b"body"  # moto's answer to every call
