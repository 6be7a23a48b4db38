"""Which AWS calls bring an endpoint to what is wanted. Pure: what is there comes in as values, calls go out as values.

A model and an endpoint configuration cannot be changed in AWS, only made anew; their names here end in a hash of what
they say, so that the same wish finds what it made last time, and another wish makes something new beside it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: The one variant of our endpoints; SageMaker's own SDK calls it so too.
VARIANT = "AllTraffic"
#: GPU instances that AWS lists for multi-model endpoints (developer guide, "multi-model-support"): one GPU each.
GPU_LISTED = frozenset(
    ["ml.p2.xlarge", "ml.p3.2xlarge"]
    + [f"ml.{family}.{size}xlarge" for family in ("g4dn", "g5") for size in ("", "2", "4", "8", "16")]
)
#: InferenceAmiVersion with the newest driver that botocore knows.
NEWEST_AMI = "al2023-ami-sagemaker-inference-gpu-4-1"
#: ContainerDefinition.Environment: entries, bytes of a key or a value, bytes of all.
ENVIRONMENT_LIMITS = (100, 1024, 32 << 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the person at the terminal wants. prefix: "s3://bucket/folder/"; the times are seconds."""

    name: str
    image: str
    role: str
    prefix: str
    instance_type: str = "ml.m5.xlarge"
    instances: int = 1
    cache: bool = True
    startup_timeout_s: int = 600
    ami: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    max_instances: int | None = None
    invocations: float = 60.0


class Call(NamedTuple):
    """One call of an AWS service, and why it is made."""

    service: str
    operation: str
    arguments: dict[str, Any]
    why: str

    def __str__(self) -> str:
        return f"{self.service}.{self.operation} {json.dumps(self.arguments, sort_keys=True)}"


class Found(NamedTuple):
    """What AWS has under the names of a wish. endpoint: DescribeEndpoint's answer, or None."""

    model: bool
    config: bool
    endpoint: Mapping[str, Any] | None


class Refused(ValueError):
    """The wish cannot be fulfilled from here; the message says what to change."""


def check(wish: Wish) -> list[str]:
    """Return warnings. Raises Refused for what AWS would refuse in less clear words, or half way."""
    if not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,53}", wish.name):
        raise Refused(f"endpoint name {wish.name!r}: letters, digits and single hyphens, 54 at most")
    if not re.fullmatch(r"arn:aws[a-z-]*:iam::\d{12}:role/\S+", wish.role):
        raise Refused(f"role {wish.role!r} is not the ARN of a role (arn:aws:iam::ACCOUNT:role/NAME)")
    if not 60 <= wish.startup_timeout_s <= 3600:
        raise Refused(f"a startup timeout of {wish.startup_timeout_s} s is outside AWS's limits, 60 to 3600")
    if wish.instances < 1 or (wish.max_instances is not None and wish.max_instances < wish.instances):
        raise Refused(f"{wish.instances} instances to {wish.max_instances} at most: 1 <= instances <= max is needed")
    _check_environment(wish.environment)
    warnings = []
    if is_gpu(wish.instance_type) and wish.instance_type not in GPU_LISTED:
        warnings.append(f"{wish.instance_type} is not among the GPU instances AWS lists for multi-model endpoints")
    if is_gpu(wish.instance_type) and wish.ami is None:
        warnings.append(f"the default host driver may be older than the image's CUDA; if so: --ami {NEWEST_AMI}")
    return warnings


def _check_environment(environment: Mapping[str, str]) -> None:
    entries, each, everything = ENVIRONMENT_LIMITS
    sizes = [(name, len(name.encode()), len(value.encode())) for name, value in environment.items()]
    for name, key_bytes, value_bytes in sizes:
        if max(key_bytes, value_bytes) > each:
            raise Refused(f"environment variable {name[:40]}: key and value have {each} bytes each at most")
    if len(sizes) > entries or sum(key + value for _, key, value in sizes) > everything:
        raise Refused(f"the environment has {entries} entries and {everything} bytes at most")


def is_gpu(instance_type: str) -> bool:
    """True for the families with NVIDIA GPUs: ml.g4dn.xlarge, ml.p3.2xlarge."""
    return re.match(r"ml\.[gp]\d", instance_type) is not None


def model(wish: Wish) -> dict[str, Any]:
    """Return CreateModel's arguments: a container in multi-model mode over the prefix."""
    container: dict[str, Any] = {
        "Image": wish.image,
        "Mode": "MultiModel",
        "ModelDataUrl": wish.prefix,
        "MultiModelConfig": {"ModelCacheSetting": "Enabled" if wish.cache else "Disabled"},
    }
    if wish.environment:
        container["Environment"] = dict(wish.environment)
    return _named(wish.name, "ModelName", {"PrimaryContainer": container, "ExecutionRoleArn": wish.role})


def config(wish: Wish) -> dict[str, Any]:
    """Return CreateEndpointConfig's arguments: one variant."""
    variant: dict[str, Any] = {
        "VariantName": VARIANT,
        "ModelName": model(wish)["ModelName"],
        "InstanceType": wish.instance_type,
        "InitialInstanceCount": wish.instances,
        "ContainerStartupHealthCheckTimeoutInSeconds": wish.startup_timeout_s,
    }
    if wish.ami is not None:
        variant["InferenceAmiVersion"] = wish.ami
    return _named(wish.name, "EndpointConfigName", {"ProductionVariants": [variant]})


def _named(name: str, key: str, arguments: dict[str, Any]) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()
    return {key: f"{name}-{digest[:8]}", **arguments}


def scaling(wish: Wish) -> list[Call]:
    """Return the calls that set autoscaling by invocations per instance and minute; none without max_instances."""
    if wish.max_instances is None:
        return []
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{wish.name}/variant/{VARIANT}",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    tracking = {
        "TargetValue": wish.invocations,
        "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
    }
    policy = {
        **target,
        "PolicyName": f"{wish.name}-invocations",
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": tracking,
    }
    bounds = {"MinCapacity": wish.instances, "MaxCapacity": wish.max_instances}
    service = "application-autoscaling"
    return [
        Call(service, "register_scalable_target", target | bounds, "the number of instances may move"),
        Call(service, "put_scaling_policy", policy, f"{wish.invocations:g} invocations per instance and minute"),
    ]


def steps(wish: Wish, found: Found) -> list[Call]:
    """Return the calls that make or change the endpoint, in order; none when it is as wished.

    Raises Refused when AWS would refuse: the endpoint is in the middle of something, or has failed for good.
    """
    calls = []
    wanted_model, wanted_config = model(wish), config(wish)
    if not found.model:
        calls.append(Call("sagemaker", "create_model", wanted_model, "no such model yet"))
    if not found.config:
        calls.append(Call("sagemaker", "create_endpoint_config", wanted_config, "no such configuration yet"))
    names = {"EndpointName": wish.name, "EndpointConfigName": wanted_config["EndpointConfigName"]}
    if found.endpoint is None:
        return [*calls, Call("sagemaker", "create_endpoint", names, "no such endpoint yet")]
    status = found.endpoint["EndpointStatus"]
    if status == "Failed":
        reason = found.endpoint.get("FailureReason", "no reason given")
        raise Refused(f"endpoint {wish.name} has failed ({reason}); first: berth endpoint delete {wish.name}")
    if found.endpoint["EndpointConfigName"] == names["EndpointConfigName"]:
        return calls
    if status != "InService":
        raise Refused(f"endpoint {wish.name} is {status} with another configuration; run this again when it is done")
    # Autoscaling has chosen the number of instances that run now; a new configuration must not undo that.
    keep = {"RetainAllVariantProperties": True} if wish.max_instances is not None else {}
    return [*calls, Call("sagemaker", "update_endpoint", names | keep, "it has another configuration")]


class Upload(NamedTuple):
    """What is to be done about one archive. action: "upload", "keep", or "refuse" (other content is there)."""

    key: str
    action: str


def uploads(local: Mapping[str, str], remote: Mapping[str, str], *, overwrite: bool) -> list[Upload]:
    """Compare the sha256 of archives by key, here and there ("" = unknown), and return what to do, by key.

    Instances keep an archive that they have downloaded: AWS asks for a new key for a new version.
    """
    done = []
    for key, digest in sorted(local.items()):
        if key not in remote:
            done.append(Upload(key, "upload"))
        elif remote[key] == digest:
            done.append(Upload(key, "keep"))
        else:
            done.append(Upload(key, "upload" if overwrite else "refuse"))
    return done


def s3_parts(url: str) -> tuple[str, str]:
    """Return (bucket, prefix ending in "/" or empty) of "s3://bucket/a/b". Raises Refused."""
    match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", url)
    if match is None:
        raise Refused(f"{url!r} is not an address in S3 (s3://bucket/folder)")
    prefix = (match[2] or "").strip("/")
    return match[1], f"{prefix}/" if prefix else ""
