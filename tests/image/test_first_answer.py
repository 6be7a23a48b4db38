"""How long a user waits: from `docker run` to the first answer. `make test-image` runs this alone, before the rest."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path

from tests.image.container import Container, contained
from tests.makers import tiny_bert

#: The goals: seconds from `docker run` to the first answer, and from the container's start to the engine's.
ANSWER_S, READY_S = 10.0, 2.5


def test_from_docker_run_to_the_first_answer(open_path: Path, figures: dict[str, str]) -> None:
    tiny_bert(open_path / "models" / "bert" / "model")
    (open_path / "models" / "bert" / "model" / "model.safetensors").chmod(0o644)  # safetensors: for its user only
    answers, readies = [], []
    for _ in range(3):
        with contained(open_path) as container:
            assert container.load("bert").status_code == 200, container.log()
            assert len(container.invoke("bert", {"inputs": "a b c"}).raise_for_status().json()) == 32
            answers.append(time.monotonic() - container.began_s)
            readies.append(seconds_to_ready(container))
    figures["docker run to the first answer"] = told(answers, ANSWER_S)
    figures["container start to engine ready"] = told(readies, READY_S)


def told(measured: list[float], goal_s: float) -> str:
    """Return the best and the worst, beside the goal: a miss is printed as one."""
    verdict = "reached" if max(measured) <= goal_s else "missed"
    return f"{min(measured):.1f} to {max(measured):.1f} s in {len(measured)} (goal {goal_s} s: {verdict})"


def seconds_to_ready(container: Container) -> float:
    """Return the time from docker's start of the container to the engine's first word that it is ready."""
    lines = [json.loads(line) for line in container.log().splitlines() if line.startswith("{")]
    ready = next(line["time"] for line in lines if line["message"].startswith("engine is ready"))
    started = container.state()["StartedAt"][:26].rstrip("Z") + "+00:00"
    return (datetime.fromisoformat(ready) - datetime.fromisoformat(started)).total_seconds()
