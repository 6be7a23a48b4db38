"""The KServe files have only fields that KServe has (kserve/kserve, pkg/apis/serving, v0.16), rightly typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from container import __version__

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kserve"

#: A field is a type, a list of one, or the fields below it.
QUANTITIES = {"cpu": str, "memory": str, "nvidia.com/gpu": str}
PROBE = {
    "httpGet": {"path": str, "port": int},
    "periodSeconds": int,
    "timeoutSeconds": int,
    "failureThreshold": int,
    "initialDelaySeconds": int,
}
CONTAINER = {
    "name": str,
    "image": str,
    "args": [str],
    "env": [{"name": str, "value": str}],
    "ports": [{"name": str, "containerPort": int, "protocol": str}],
    "startupProbe": PROBE,
    "readinessProbe": PROBE,
    "livenessProbe": PROBE,
    "securityContext": {
        "runAsNonRoot": bool,
        "runAsUser": int,
        "allowPrivilegeEscalation": bool,
        "readOnlyRootFilesystem": bool,
        "capabilities": {"drop": [str]},
    },
    "resources": {"requests": QUANTITIES, "limits": QUANTITIES},
    "volumeMounts": [{"name": str, "mountPath": str}],
}
RUNTIME = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "annotations": dict,
        "supportedModelFormats": [{"name": str, "version": str, "autoSelect": bool, "priority": int}],
        "protocolVersions": [str],
        "multiModel": bool,
        "disabled": bool,
        "containers": [CONTAINER],
        "volumes": [{"name": str, "emptyDir": dict}],
    },
}
SERVICE = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "annotations": dict},
    "spec": {
        "predictor": {
            "minReplicas": int,
            "maxReplicas": int,
            "scaleMetric": str,
            "scaleTarget": int,
            "timeout": int,
            "containerConcurrency": int,
            "model": {
                "modelFormat": {"name": str, "version": str},
                "runtime": str,
                "protocolVersion": str,
                "storageUri": str,
                "resources": CONTAINER["resources"],
                "env": CONTAINER["env"],
            },
        }
    },
}


def read(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return loaded


def wrong(value: Any, wanted: Any, where: str = "") -> list[str]:
    """Return what does not fit, as paths."""
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            return [f"{where} is no mapping"]
        unknown = [f"{where}.{key} is unknown" for key in value.keys() - wanted.keys()]
        return unknown + [
            each for key in value.keys() & wanted.keys() for each in wrong(value[key], wanted[key], f"{where}.{key}")
        ]
    if isinstance(wanted, list):
        if not isinstance(value, list):
            return [f"{where} is no list"]
        return [each for i, item in enumerate(value) for each in wrong(item, wanted[0], f"{where}[{i}]")]
    return [] if type(value) is wanted else [f"{where} is {type(value).__name__}, not {wanted.__name__}"]


@pytest.mark.parametrize(("file", "fields"), [("serving-runtime.yaml", RUNTIME), ("inference-service.yaml", SERVICE)])
def test_every_field_is_one_of_kserves_and_of_its_type(file: str, fields: dict[str, Any]) -> None:
    assert wrong(read(file), fields) == []


def test_a_misspelt_field_and_a_number_for_a_text_are_found() -> None:
    runtime = read("serving-runtime.yaml")
    runtime["spec"]["containers"][0]["portz"] = []
    runtime["spec"]["containers"][0]["env"][0]["value"] = 1
    assert sorted(wrong(runtime, RUNTIME)) == [
        ".spec.containers[0].env[0].value is int, not str",
        ".spec.containers[0].portz is unknown",
    ]


def test_the_two_files_speak_of_one_another_and_of_this_version() -> None:
    runtime, service = read("serving-runtime.yaml"), read("inference-service.yaml")
    assert (runtime["apiVersion"], runtime["kind"]) == ("serving.kserve.io/v1alpha1", "ServingRuntime")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    formats = [(each["name"], each["version"]) for each in runtime["spec"]["supportedModelFormats"]]
    assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in formats
    [container] = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"  # KServe finds it by this name
    assert container["image"].endswith(f":{__version__}")


def test_every_mounted_volume_is_there() -> None:
    spec = read("serving-runtime.yaml")["spec"]
    mounted = {mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}
