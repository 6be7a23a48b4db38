"""build_and_push.sh against moto's ECR, with a docker that only notes what it is asked."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests.cli.cloud import ACCOUNT, NOBODY, REGION, environ, moto_cloud
from tests.server import ROOT

HOST = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
#: Notes arguments and what comes on stdin; the image has a digest. BUILT and LABEL are what it says of itself.
DOCKER = """#!/bin/sh
echo "$@" >> "$NOTES/arguments"
case "$*" in
    login*) cat > "$NOTES/stdin" ;;
    version) exit "${ENGINE:-0}" ;;
    *Architecture*) echo "${BUILT:-linux/amd64}" ;;
    *Labels*) echo "${LABEL-true}" ;;
    "image inspect"*nowhere*) exit 1 ;;
    "image inspect"*) echo "@HOST@/berth@sha256:0123" ;;
    push*) exit "${PUSHED:-0}" ;;
esac
"""


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER.replace("@HOST@", HOST))
    docker.chmod(0o755)
    return tmp_path


@pytest.fixture
def cloud() -> Iterator[dict[str, str]]:
    with moto_cloud() as where:
        yield where


def push(notes: Path, where: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"{notes / 'bin'}:/usr/bin:/bin"
    return subprocess.run(
        [str(ROOT / "build_and_push.sh"), *arguments],
        env=environ(**where, PATH=path, NOTES=str(notes)),
        capture_output=True,
        text=True,
        cwd=notes,
    )


def asked_of_docker(notes: Path) -> list[str]:
    file = notes / "arguments"
    return file.read_text().splitlines() if file.exists() else []


def test_the_repository_is_created_and_the_password_goes_through_a_pipe(notes: Path, cloud: dict[str, str]) -> None:
    done = push(notes, cloud, "--image", "berth:dev")
    assert done.returncode == 0, done.stderr
    by_tag, by_digest = done.stdout.splitlines()
    assert re.fullmatch(rf"{re.escape(HOST)}/berth:[0-9a-f]{{12}}(-dirty)?", by_tag)
    assert by_digest == f"{HOST}/berth@sha256:0123"
    repositories = boto3.client("ecr").describe_repositories()["repositories"]
    assert [each["repositoryName"] for each in repositories] == ["berth"]
    asked = asked_of_docker(notes)
    password = (notes / "stdin").read_text().strip()
    assert password
    assert not [line for line in asked if password in line]
    assert password not in done.stdout + done.stderr
    assert f"login --username AWS --password-stdin {HOST}" in asked
    assert f"push --quiet {by_tag}" in asked
    assert f"push --quiet {HOST}/berth:0.1.0" in asked


def test_a_repository_that_is_there_is_left_as_it_is(notes: Path, cloud: dict[str, str]) -> None:
    boto3.client("ecr").create_repository(repositoryName="team/models", imageTagMutability="IMMUTABLE")
    done = push(notes, cloud, "--image", "berth:dev", "team/models")
    assert f"push --quiet {HOST}/team/models:0.1.0" in asked_of_docker(notes), done.stderr
    repositories = boto3.client("ecr").describe_repositories()["repositories"]
    assert [(each["repositoryName"], each["imageTagMutability"]) for each in repositories] == [
        ("team/models", "IMMUTABLE")
    ]


def test_a_dry_run_changes_nothing_and_says_what_it_would_do(notes: Path, cloud: dict[str, str]) -> None:
    done = push(notes, cloud, "--dry-run", "--account", "999999999999", "--region", "cn-north-1")
    assert done.returncode == 0, done.stderr
    host = "999999999999.dkr.ecr.cn-north-1.amazonaws.com.cn"
    assert done.stdout.startswith(f"{host}/berth:")
    for words in ("sh .ci/image.sh", "would create the repository berth", f"--password-stdin {host}", "docker push"):
        assert words in done.stderr
    assert asked_of_docker(notes) == []
    assert boto3.client("ecr").describe_repositories()["repositories"] == []


@pytest.mark.parametrize(
    ("arguments", "where", "status", "words"),
    [
        ((), {}, 1, "no AWS region"),
        ((), {"AWS_REGION": REGION}, 1, "no AWS credentials"),
        (("--account", "12"), {}, 2, "twelve digits"),
        (("Berth",), {}, 2, "lower case"),
        (("--port", "1"), {}, 2, "unknown option --port"),
        (("--region",), {}, 2, "--region needs a value"),
        (("--dry-run",), {"PYTHON": "/nowhere/python"}, 1, "make setup"),
    ],
)
def test_each_thing_that_is_missing_is_named(
    notes: Path, arguments: tuple[str, ...], where: dict[str, str], status: int, words: str
) -> None:
    done = push(notes, NOBODY | where, *arguments)
    assert done.returncode == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert asked_of_docker(notes) == []


@pytest.mark.parametrize(
    ("image", "where", "words"),
    [
        ("berth:dev", {"ENGINE": "1"}, "no docker engine answers: start docker"),
        ("nowhere:dev", {}, "there is no image nowhere:dev here: 'make image'"),
        ("berth:dev", {"BUILT": "linux/arm64"}, "is for linux/arm64; SageMaker runs linux/amd64"),
        ("nginx:1", {"LABEL": "<no value>"}, "lacks the label com.amazonaws.sagemaker.capabilities.multi-models=true"),
        ("berth:dev", {"PUSHED": "1"}, "cannot push 127.0.0.1:9/berth:"),
    ],
)
def test_an_image_that_sagemaker_would_refuse_or_that_is_not_there_is_told_before_it_is_pushed(
    notes: Path, image: str, where: dict[str, str], words: str
) -> None:
    done = push(notes, NOBODY | where, "--registry", "127.0.0.1:9", "--image", image)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    pushed = [line for line in asked_of_docker(notes) if line.startswith("push")]
    assert len(pushed) == ("PUSHED" in where)


def test_without_docker_it_says_so_first(notes: Path) -> None:
    (notes / "bin" / "docker").unlink()
    (notes / "bin" / "dirname").symlink_to("/usr/bin/dirname")
    command = ["/bin/bash", str(ROOT / "build_and_push.sh"), "--registry", "127.0.0.1:9"]
    done = subprocess.run(command, env=environ(PATH=str(notes / "bin")), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "build_and_push.sh: docker is not installed\n")
