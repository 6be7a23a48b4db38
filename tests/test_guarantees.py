"""Every promise of docs/guarantees.md, and every race decided in docs/races.md, names a test that is there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.server import ROOT

NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
PAGES = ("docs/guarantees.md", "docs/races.md")


def collected(path: str) -> set[str]:
    """The names of the test functions that pytest collects from ``path``."""
    if not (ROOT / path).is_file() or not path.rpartition("/")[2].startswith("test_"):
        return set()
    tree = ast.parse((ROOT / path).read_text())
    return {each.name for each in tree.body if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")}


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    named = NAMED.findall((ROOT / page).read_text())
    assert len(named) > 10
    missing = [f"{path}::{name}" for path, name in named if name not in collected(path)]
    assert not missing


def test_no_promise_stands_without_its_test() -> None:
    lines = (ROOT / PAGES[0]).read_text().split("\n## ", 1)[1].splitlines()
    promises = [line for line in lines if line.startswith("- ")]
    assert len(promises) > 30
    bare = [line for line in promises if not NAMED.search(line)]
    assert not bare


def test_a_test_that_is_not_there_is_noticed() -> None:
    assert "test_a_test_that_is_not_there_is_noticed" in collected("tests/test_guarantees.py")
    assert "test_nothing_of_this_name" not in collected("tests/test_guarantees.py")
    assert not collected("tests/server.py")
