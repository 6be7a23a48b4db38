"""Which AWS calls a wish leads to, as values."""

from __future__ import annotations

import dataclasses

import botocore.session
import pytest
from botocore.validate import ParamValidator
from hypothesis import given
from hypothesis import strategies as st

from container.cli import deployment
from container.cli.deployment import GPU_LISTED, Found, Refused, Upload, Wish

ROLE = "arn:aws:iam::123456789012:role/service-role/Serving"
WISH = Wish(
    name="cats", image="host/berth:1", role=ROLE, prefix="s3://bucket/cats/", environment={"BERTH_SHARING": "on"}
)
NOTHING = Found(model=False, config=False, endpoint=None)


def there(**changes: object) -> Found:
    endpoint = {
        "EndpointStatus": "InService",
        "EndpointConfigName": deployment.config(WISH)["EndpointConfigName"],
        **changes,
    }
    return Found(model=True, config=True, endpoint=endpoint)


def operations(wish: Wish, found: Found) -> list[str]:
    return [call.operation for call in deployment.steps(wish, found)]


def test_from_nothing_the_three_are_made_in_order() -> None:
    assert operations(WISH, NOTHING) == ["create_model", "create_endpoint_config", "create_endpoint"]


def test_what_is_there_is_not_made_again() -> None:
    assert operations(WISH, Found(True, False, None)) == ["create_endpoint_config", "create_endpoint"]
    assert operations(WISH, there()) == []
    assert operations(WISH, there(EndpointStatus="Creating")) == []


def test_another_wish_updates_and_keeps_the_number_that_autoscaling_has_chosen() -> None:
    bigger = dataclasses.replace(WISH, instance_type="ml.m5.4xlarge")
    found = Found(True, False, there().endpoint)
    calls = deployment.steps(bigger, found)
    assert [call.operation for call in calls] == ["create_endpoint_config", "update_endpoint"]
    assert "RetainAllVariantProperties" not in calls[1].arguments
    scaled = dataclasses.replace(bigger, max_instances=4)
    assert deployment.steps(scaled, found)[-1].arguments["RetainAllVariantProperties"] is True


@pytest.mark.parametrize("status", ["Creating", "Updating", "RollingBack", "Deleting", "SystemUpdating"])
def test_an_endpoint_in_the_middle_of_something_else_is_left_alone(status: str) -> None:
    with pytest.raises(Refused, match=f"cats is {status}"):
        deployment.steps(WISH, there(EndpointStatus=status, EndpointConfigName="other"))


def test_a_failed_endpoint_says_why_and_what_to_do() -> None:
    with pytest.raises(Refused, match=r"no ping.*berth endpoint delete cats"):
        deployment.steps(WISH, there(EndpointStatus="Failed", FailureReason="no ping"))


def test_the_model_is_multi_model_over_the_prefix() -> None:
    made = deployment.model(dataclasses.replace(WISH, cache=False))
    assert made.pop("ModelName").startswith("cats-")
    assert made == {
        "ExecutionRoleArn": ROLE,
        "PrimaryContainer": {
            "Image": "host/berth:1",
            "Mode": "MultiModel",
            "ModelDataUrl": "s3://bucket/cats/",
            "MultiModelConfig": {"ModelCacheSetting": "Disabled"},
            "Environment": {"BERTH_SHARING": "on"},
        },
    }


@given(
    name=st.from_regex(r"[a-zA-Z0-9](-?[a-zA-Z0-9]){0,30}", fullmatch=True),
    instances=st.integers(1, 20),
    timeout=st.integers(60, 3600),
    ami=st.sampled_from([None, deployment.NEWEST_AMI]),
    extra=st.none() | st.integers(0, 20),
    instance_type=st.sampled_from(sorted(GPU_LISTED)),
)
def test_every_call_is_one_that_botocore_knows(
    name: str, instances: int, timeout: int, ami: str | None, extra: int | None, instance_type: str
) -> None:
    wish = dataclasses.replace(
        WISH,
        name=name,
        instances=instances,
        startup_timeout_s=timeout,
        ami=ami,
        max_instances=None if extra is None else instances + extra,
        instance_type=instance_type,
    )
    deployment.check(wish)
    changed = Found(False, False, {"EndpointStatus": "InService", "EndpointConfigName": "other"})
    for call in [*deployment.steps(wish, NOTHING), *deployment.steps(wish, changed), *deployment.scaling(wish)]:
        model = _services(call.service)
        shape = model.operation_model("".join(word.title() for word in call.operation.split("_"))).input_shape
        report = ParamValidator().validate(call.arguments, shape)
        assert not report.has_errors(), report.generate_report()


def test_the_listed_instances_and_the_newest_ami_exist_in_botocore() -> None:
    model = _services("sagemaker")
    assert set(model.shape_for("ProductionVariantInstanceType").enum) >= GPU_LISTED
    assert deployment.NEWEST_AMI in model.shape_for("ProductionVariantInferenceAmiVersion").enum


def test_gpu_instances_that_aws_does_not_list_are_warned_of() -> None:
    def warned(instance_type: str) -> bool:
        return any(
            "not among" in each for each in deployment.check(dataclasses.replace(WISH, instance_type=instance_type))
        )

    assert [
        warned(f"ml.{each}") for each in ("g5.xlarge", "g5.12xlarge", "p5.48xlarge", "m5.xlarge", "c7g.xlarge")
    ] == [
        False,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "a_b"}, "single hyphens"),
        ({"role": "Serving"}, "ARN"),
        ({"startup_timeout_s": 30}, "60 to 3600"),
        ({"instances": 3, "max_instances": 2}, "1 <= instances <= max"),
        ({"environment": {"A": "x" * 1025}}, "1024 bytes"),
        ({"environment": {f"A{n}": "" for n in range(101)}}, "100 entries"),
        ({"environment": {f"A{n}": "x" * 1000 for n in range(40)}}, "32768 bytes"),
    ],
)
def test_what_aws_would_refuse_is_refused_first(changes: dict[str, object], words: str) -> None:
    with pytest.raises(Refused, match=words):
        deployment.check(dataclasses.replace(WISH, **changes))


def test_archives_that_are_there_stay_and_other_content_needs_a_word() -> None:
    local, remote = {"a": "1", "b": "2", "c": "3"}, {"b": "2", "c": "other"}
    plain = deployment.uploads(local, remote, overwrite=False)
    assert plain == [Upload("a", "upload"), Upload("b", "keep"), Upload("c", "refuse")]
    assert deployment.uploads(local, remote, overwrite=True)[2] == Upload("c", "upload")


@pytest.mark.parametrize(
    ("url", "parts"),
    [("s3://bucket", ("bucket", "")), ("s3://my.bucket/a/b", ("my.bucket", "a/b/")), ("s3://b-1/a/", ("b-1", "a/"))],
)
def test_an_s3_address_is_a_bucket_and_a_prefix(url: str, parts: tuple[str, str]) -> None:
    assert deployment.s3_parts(url) == parts


@pytest.mark.parametrize("url", ["bucket/a", "https://bucket", "s3://", "s3://B/a"])
def test_what_is_no_s3_address_is_refused(url: str) -> None:
    with pytest.raises(Refused, match="s3://bucket/folder"):
        deployment.s3_parts(url)


_MODELS: dict[str, object] = {}


def _services(name: str) -> object:
    if name not in _MODELS:
        _MODELS[name] = botocore.session.get_session().get_service_model(name)
    return _MODELS[name]
