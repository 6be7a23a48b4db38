"""What the pages name is there: files, modules, verbs, settings, metrics."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from container.cli import VERBS
from container.front.metrics_text import HELP
from container.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in [*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/**/*.md")]
    if not {"node_modules", "build"} & set(page.parts)
)


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_to_one(page: str) -> None:
    targets = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page))]
    files = [target for target in targets if target and "://" not in target and not target.startswith("mailto:")]
    assert [target for target in files if not (ROOT / page).parent.joinpath(target).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_make_verb_is_one(page: str) -> None:
    verbs = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    named = re.findall(r"(?:`|^    |&& )make ((?:[a-z-]+ ?)+)", text_of(page), re.MULTILINE)
    assert {verb for each in named for verb in each.split()[:1]} - verbs == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_verb_of_the_command_is_one(page: str) -> None:
    named = set(re.findall(r"(?:`|^    |\$ )berth ([a-z]+)", text_of(page), re.MULTILINE))
    assert named - VERBS.keys() == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_is_one(page: str) -> None:
    known = {field.metadata["env"] for field in dataclasses.fields(Settings)}
    named = set(re.findall(r"\bBERTH_[A-Z_]*[A-Z]\b(?!_?\*)", text_of(page)))
    assert named - known == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_metric_is_one(page: str) -> None:
    named = set(re.findall(r"\bberth_[a-z_]+_(?:total|bytes|seconds|flight|up)\b", text_of(page)))
    assert {name.removesuffix("_total") for name in named} - HELP.keys() == set()


def test_every_module_of_the_overview_exists_and_every_folder_is_in_its_layers() -> None:
    text = text_of("docs/00-overview.md")
    named = set(re.findall(r"\b([a-z0-9_]+/[a-z0-9_]+)\b(?![./-])", text))
    folders = {path.name for path in (ROOT / "container").iterdir() if (path / "__init__.py").exists()}
    modules = {name for name in named if name.partition("/")[0] in folders}
    assert len(modules) > 25
    assert {name for name in modules if not (ROOT / "container" / f"{name}.py").exists()} == set()
    layers = text.partition("Imports go down only:")[2].partition("`handlers/`")[0]
    assert folders - set(re.findall(r"[a-z]+", layers)) == set()


def test_every_file_that_the_guide_for_changes_names_exists() -> None:
    table = text_of("CONTRIBUTING.md").partition("| new thing |")[2].partition("\n\n")[0]
    named = re.findall(r"`([a-z_/]+(?:\.py|/))`", table)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []
