"""Every way in which the Dockerfile may be built, with empty wheels for what is heavy (``tests.image.context``)."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from container import __version__
from tests.image.container import IMAGE, docker
from tests.image.context import EXTRA, base_image, build, buildkit_client, chosen, layers_of, small_context
from tests.server import ROOT, free_port

#: Builds of several stages, on a machine that may do much else.
pytestmark = pytest.mark.timeout(600)

#: Where what an image holds is looked at; bytecode may differ in its reference flags from one compilation to the next.
LIST = "cd /opt && find . -type f ! -name '*.pyc' -exec sha256sum {} + | sort -k2; find . -name '*.pyc' | sort"


def content(image: str) -> str:
    return docker("run", "--rm", "--network=none", "--entrypoint", "/bin/sh", image, "-c", LIST)


def python(image: str, code: str) -> str:
    return docker("run", "--rm", "--network=none", "--entrypoint", "/opt/berth/bin/python", image, "-c", code)


def config(image: str) -> dict[str, Any]:
    kept = ("Env", "Labels", "Entrypoint", "Cmd", "ExposedPorts", "User", "WorkingDir")
    inspected = json.loads(docker("image", "inspect", "-f", "{{json .Config}}", image))
    return {name: inspected.get(name) or None for name in kept}


@pytest.fixture
def tags() -> Iterator[str]:
    """A name for images of this test, which are removed after it."""
    name = f"berth-try-{free_port()}"
    yield name
    for tag in docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", name).splitlines():
        docker("image", "rm", "-f", tag)


@contextmanager
def index(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """An index of packages on loopback; yields its address and the paths that are asked of it."""
    asked: list[str] = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def test_the_classic_builder_and_buildkit_build_the_same_image(tmp_path: Path, tags: str) -> None:
    context = small_context(tmp_path)
    arguments = chosen(f"BASE_IMAGE={base_image()}", "TORCH_INDEX_URL=", f"EXTRAS={EXTRA}")
    build(context, f"{tags}:classic", *arguments)
    said = build(context, f"{tags}:buildkit", *arguments, client=buildkit_client(), buildkit=True)
    assert "[environment" in said, "BuildKit names the stages of what it does; the classic builder counts steps"
    assert content(f"{tags}:classic") == content(f"{tags}:buildkit")
    assert config(f"{tags}:classic") == config(f"{tags}:buildkit")
    assert config(f"{tags}:classic")["Labels"]["berth.extras"] == EXTRA
    for image in (f"{tags}:classic", f"{tags}:buildkit"):
        assert python(image, "import container; print(container.__version__)") == __version__


def test_a_change_of_a_handler_makes_one_small_layer_anew(tmp_path: Path, tags: str, figures: dict[str, str]) -> None:
    """The image itself, once more from a copy of its context."""
    for name in ("Dockerfile", ".dockerignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("container", "handlers", "requirements", "extra", ".ci"):
        shutil.copytree(ROOT / name, tmp_path / name, copy_function=os.link)
    (tmp_path / "handlers" / "purr.py").write_text('SOUND = "rrr"\n')
    environ = os.environ | {"IMAGE": f"{tags}:after"}
    began_s = time.monotonic()
    done = subprocess.run(["sh", ".ci/image.sh"], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures["a changed handler is built in"] = f"{time.monotonic() - began_s:.0f} s"
    before, after = layers_of(IMAGE), layers_of(f"{tags}:after")
    assert before[:-1] == after[:-1]
    assert before[-1] != after[-1]
    assert python(f"{tags}:after", "import handlers.purr; print(handlers.purr.SOUND)") == "rrr"


def test_a_base_without_python_and_torch_from_an_index_of_its_own(tmp_path: Path, tags: str) -> None:
    """The way of a GPU image: a CUDA base has no Python, and its torch comes from another index."""
    bare = tmp_path / "bare"
    bare.mkdir()
    lost = "apt-get purge -qq -y --auto-remove 'python3*' 'libpython3*' >/dev/null 2>&1; rm -rf /usr/local/bin/python*"
    (bare / "Dockerfile").write_text(f"FROM {base_image()}\nRUN {lost}; ! command -v python3\n")
    build(bare, f"{tags}:bare")
    (tmp_path / "context").mkdir()
    with index(tmp_path / "context" / "index") as (address, asked):
        context = small_context(tmp_path / "context", torch_in="index/torch", pip=f"index-url = {address}")
        build(context, f"{tags}:cuda", *chosen(f"BASE_IMAGE={tags}:bare", f"TORCH_INDEX_URL={address}", "EXTRAS="))
    assert "/torch/" in asked
    assert any(path.endswith(".whl") for path in asked)
    assert python(f"{tags}:cuda", "import torch, berth_core; print(berth_core.NAME)") == "core"
    assert python(f"{tags}:cuda", "import container; print(container.__version__)") == __version__
    environ = config(f"{tags}:cuda")["Env"]
    assert {"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"} <= set(environ)
    left = "ls -d /extra /requirements /etc/pip.conf /var/lib/apt/lists/*Packages /root/.cache 2>/dev/null; true"
    assert docker("run", "--rm", "--entrypoint", "/bin/sh", f"{tags}:cuda", "-c", left) == ""


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"EXTRAS": "onnx cuda"}, "there is no extra 'cuda'"),
        ({"BASE_IMAGE": "127.0.0.1:9/nothing:here"}, "cannot be pulled"),
        ({"DOCKER_HOST": "tcp://127.0.0.1:9"}, "nothing answers at DOCKER_HOST"),
    ],
)
def test_what_cannot_be_built_is_told_before_it_is_tried(environ: dict[str, str], words: str) -> None:
    command = [
        "env",
        *(f"{name}={value}" for name, value in environ.items()),
        "IMAGE=berth:never",
        "sh",
        ".ci/image.sh",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    assert words in done.stderr
    assert "berth:never" not in docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").splitlines()
    assert docker("image", "inspect", "-f", "{{.Os}}", IMAGE) == "linux"
