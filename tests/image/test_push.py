"""build_and_push.sh into a real registry (Debian's docker-registry) on loopback, and out of it again."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from container import __version__
from tests.image.container import IMAGE, Container, docker
from tests.image.test_life import ECHO
from tests.server import ROOT, free_port, write_handler

CONFIG = """
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """An empty registry; yields HOST:PORT."""
    program = shutil.which("docker-registry")
    assert program, "no docker-registry here: apt-get install docker-registry"
    port = free_port()
    config = tmp_path / "registry.yml"
    config.write_text(CONFIG.format(folder=tmp_path / "blobs", port=port))
    with (tmp_path / "registry.log").open("w") as log:
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(tmp_path / "blobs", ignore_errors=True)


@pytest.mark.timeout(600)
def test_what_is_pushed_can_be_pulled_and_serves(registry: str, open_path: Path, figures: dict[str, str]) -> None:
    command = [str(ROOT / "build_and_push.sh"), "--registry", registry, "--image", IMAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    by_tag, by_digest = done.stdout.splitlines()
    assert by_tag.startswith(f"{registry}/berth:")
    assert by_digest.startswith(f"{registry}/berth@sha256:")
    assert by_tag.partition(":")[2].partition(":")[2] == _revision()
    assert _tags(registry) == {_revision(), __version__}
    manifest = _manifest(registry, by_digest.partition("@")[2])
    assert manifest["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert {layer["mediaType"] for layer in manifest["layers"]} == {"application/vnd.docker.image.rootfs.diff.tar.gzip"}
    figures["pushed"] = f"{sum(layer['size'] for layer in manifest['layers']) / 1e6:.0f} MB compressed"
    docker("image", "rm", by_tag, f"{registry}/berth:{__version__}")
    docker("pull", "--quiet", by_digest)
    container = Container(open_path / "base", image=by_digest)
    try:
        write_handler(container.wait_until_up().folder("echo"), ECHO)
        container.load("echo").raise_for_status()
        assert container.invoke("echo", {"pulled": True}).json() == {"pulled": True}
        assert container.stop() == 0
    finally:
        container.remove()
        docker("image", "rm", by_digest)


def _revision() -> str:
    """What git says of this checkout, as a tag."""
    git = ["git", "-C", str(ROOT)]
    short = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
    return short.strip() + ("-dirty" if changed else "")


def _tags(registry: str) -> set[str]:
    with urllib.request.urlopen(f"http://{registry}/v2/berth/tags/list", timeout=10) as answer:
        return set(json.load(answer)["tags"])


def _manifest(registry: str, digest: str) -> dict[str, object]:
    request = urllib.request.Request(f"http://{registry}/v2/berth/manifests/{digest}")
    request.add_header("Accept", "application/vnd.docker.distribution.manifest.v2+json")
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, object] = json.load(answer)
    return found
