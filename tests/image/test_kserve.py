"""The pod of deploy/kserve, as far as an engine without Kubernetes can be it: command, environment, user, probes."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import yaml

from tests.image.container import Container, docker
from tests.server import ROOT

CONFIG = """
name: "adds" platform: "pytorch_libtorch" max_batch_size: 0
input [{ name: "x" data_type: TYPE_FP32 dims: [2] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [2] }]
"""


class Adds(torch.nn.Module):
    """One is added to whatever comes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def triton_archive(folder: Path) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    torch.jit.script(Adds()).save(folder / "1" / "model.pt")


def test_the_pod_serves_every_model_of_its_storage(open_path: Path) -> None:
    spec = yaml.safe_load((ROOT / "deploy" / "kserve" / "serving-runtime.yaml").read_text())["spec"]
    [pod] = spec["containers"]
    triton_archive(open_path / "storage" / "adds")
    security = pod["securityContext"]
    options = ["--user", str(security["runAsUser"]), "--memory", pod["resources"]["limits"]["memory"].rstrip("i")]
    options += ["-v", f"{open_path / 'storage'}:/mnt/models:ro", "--security-opt", "no-new-privileges"]
    options += [word for capability in security["capabilities"]["drop"] for word in ("--cap-drop", capability)]
    options += ["--read-only"] if security["readOnlyRootFilesystem"] else []
    options += [word for mount in pod["volumeMounts"] for word in ("--tmpfs", mount["mountPath"])]
    environ = {each["name"]: each["value"] for each in pod["env"]}
    container = Container(open_path / "base", *options, arguments=tuple(pod["args"]), **environ)
    try:
        container.wait_until_up()
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container.http.get(pod[probe]["httpGet"]["path"]).status_code == 200, probe
        deadline = time.monotonic() + 60
        while container.http.get("/v2/models/adds/ready").status_code != 200:
            assert time.monotonic() < deadline, container.log()
            time.sleep(0.05)
        tensor = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}
        answer = container.http.post("/v2/models/adds/infer", json={"inputs": [tensor]})
        assert answer.status_code == 200, answer.text
        [output] = answer.json()["outputs"]
        assert (output["name"], output["data"]) == ("y", [2, 3])
        assert container.http.get(spec["annotations"]["prometheus.kserve.io/path"]).status_code == 200
        assert container.stop() == 0
    finally:
        container.remove()
    assert docker("ps", "-aq", "--filter", f"id={container.id}") == ""
