"""The locks that the image is built from: everything pinned and hashed, nothing of pyproject.toml forgotten."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name not in {"aws", "dev"}}


def pins(lock: Path) -> list[Requirement]:
    return [Requirement(line) for line in re.findall(r"^[a-z0-9].*?(?= \\$)", lock.read_text(), re.MULTILINE)]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_requirement_is_one_version_with_hashes(lock: Path) -> None:
    blocks = re.findall(r"^[a-z0-9].*?(?=^[a-z0-9]|\Z)", lock.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == len(pins(lock)) > 0
    for block in blocks:
        assert re.match(r"[a-z0-9.-]+==\S+", block), block
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block
    assert not [pin for pin in pins(lock) if pin.name.startswith(("torch", "nvidia"))]


@pytest.mark.parametrize("name", ["core", *EXTRAS])
def test_every_dependency_is_locked_at_a_version_it_allows(name: str) -> None:
    """`make lock` repairs what fails here."""
    locked: dict[str, set[str]] = {}
    for lock in {"core", name}:
        for pin in pins(ROOT / "requirements" / f"{lock}.lock"):
            locked.setdefault(pin.name, set()).add(str(pin.specifier).removeprefix("=="))
    for line in PROJECT["dependencies"] if name == "core" else EXTRAS[name]:
        wanted = Requirement(line)
        if wanted.name == "torch":
            version = (ROOT / "requirements" / "torch.txt").read_text().strip().removeprefix("torch==")
            assert version in wanted.specifier
            continue
        versions = locked.get(normal(wanted.name), set())
        assert versions, f"{line} is in no lock; make lock"
        assert all(version in wanted.specifier for version in versions), (line, versions)


def test_a_package_has_the_same_versions_in_whatever_locks_name_it() -> None:
    seen: dict[str, set[str]] = {}
    for lock in LOCKS:
        own: dict[str, set[str]] = {}
        for pin in pins(lock):
            own.setdefault(pin.name, set()).add(str(pin.specifier))
        for name, versions in own.items():
            assert seen.setdefault(name, versions) == versions, (lock.name, name)


def test_each_extra_has_a_lock_and_each_lock_an_extra() -> None:
    assert {lock.stem for lock in LOCKS} == {"core", *EXTRAS}
    default = re.search(r'^ARG EXTRAS="(.*)"$', (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert default is not None
    assert set(default[1].split()) == EXTRAS.keys() - {"mms"}
