"""The Dockerfile with stand-ins for what is heavy: each way of building it is tried in seconds, all instructions of it.

torch and the one locked package are empty wheels; everything else (stages, arguments, our code) is what is released.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

from tests.image.container import IMAGE, docker
from tests.server import ROOT

#: The extra of the small context, in the place of "triton", "mms" and the others.
EXTRA = "pair"


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> str:
    """Write a wheel of these files into ``folder``; return the requirement that pins it by its hash."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: berth\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={_digest(text)},{len(text)}\n" for path, text in files.items())
    file = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in (files | {f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}).items():
            archive.writestr(zipfile.ZipInfo(path), text)  # dated 1980: the same bytes each time
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def small_context(folder: Path, *, torch_in: str = "extra/wheels", pip: str = "no-index = true") -> Path:
    """Make a build context of our own Dockerfile in ``folder``.

    torch_in: the sub-folder for torch's wheel. pip: a line of extra/pip.conf.
    """
    for name in ("Dockerfile", ".dockerignore"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("container", "handlers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    wheels, locks = folder / "extra" / "wheels", folder / "requirements"
    locks.mkdir()
    wheels.mkdir(parents=True)
    (folder / "extra" / "pip.conf").write_text(f"{pip}\n")
    version = (ROOT / "requirements" / "torch.txt").read_text().strip().partition("==")[2]
    shutil.copy(ROOT / "requirements" / "torch.txt", locks)
    torch_files = {"torch/__init__.py": "", "torch/bin/torch_shm_manager": "", "torch/include/left.h": ""}
    wheel(folder / torch_in, "torch", version, torch_files)
    for name in ("core", EXTRA):
        files = {f"berth_{name}/__init__.py": f"NAME = {name!r}\n", f"berth_{name}/tests/left.py": ""}
        (locks / f"{name}.lock").write_text(wheel(wheels, f"berth_{name}", "1.0", files))
    return folder


def base_image() -> str:
    """Return the base that the tested image was built from: what `make image` has found here."""
    layers = set(layers_of(IMAGE)[:1])
    for tag in docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").splitlines():
        if re.search(r"base|python", tag) and layers <= set(layers_of(tag)):
            return tag
    raise AssertionError(f"the base of {IMAGE} is no longer here: make image")


def layers_of(image: str) -> list[str]:
    """The digests of an image's layers, lowest first."""
    return docker("image", "inspect", "-f", '{{join .RootFS.Layers " "}}', image).split()


def chosen(*arguments: str) -> list[str]:
    """Return the options of docker build for these build arguments."""
    return [word for each in arguments for word in ("--build-arg", each)]


def build(context: Path, tag: str, *options: str, client: str = "docker", buildkit: bool = False) -> str:
    """Build ``context`` as ``tag``; return all that docker said. It must end well."""
    command = [client, "build", "--network=host", "-t", tag, *options, str(context)]
    environ = os.environ | {"DOCKER_BUILDKIT": str(int(buildkit))}
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def buildkit_client() -> str:
    """Return a docker client that can drive BuildKit: one with buildx, or one from before buildx was wanted."""
    folders = os.environ["PATH"].split(os.pathsep)
    for client in dict.fromkeys(shutil.which("docker", path=folder) for folder in folders):
        if client is None:
            continue
        if subprocess.run([client, "buildx", "version"], capture_output=True).returncode == 0:
            return client
        said = subprocess.run([client, "--version"], capture_output=True, text=True).stdout
        if (found := re.search(r"version (\d+)", said)) and int(found[1]) < 23:
            return client
    raise AssertionError(
        "no docker client here can drive BuildKit: apt-get install docker-buildx, or Debian's docker.io"
    )
