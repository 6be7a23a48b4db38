"""Each system that users may come from has its test and its page, and the pages are to be found."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {page.name: page.read_text() for page in (ROOT / "docs" / "moving-in").glob("*.md")}
#: In the order of the rows: the order in which they are named wherever they are named.
ORDER = (
    "sagemaker-xgboost.md",
    "multi-model-server.md",
    "flask-container.md",
    "hugging-face.md",
    "triton.md",
    "torchserve.md",
)
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def test_each_row_is_named_by_one_page_and_each_page_names_a_row() -> None:
    rows = {path.name for path in (ROOT / "tests" / "rows").glob("test_row_?.py")}
    assert rows == {f"test_row_{letter}.py" for letter in "abcdefg"}
    named = [(row, name) for name in ORDER for row in sorted(rows) if f"tests/rows/{row}" in PAGES[name]]
    assert [row for row, _ in named] == sorted(rows)
    assert {name for _, name in named} == PAGES.keys()


def test_each_page_says_what_changes() -> None:
    for name, text in PAGES.items():
        assert re.search(r"^## What changes", text, re.MULTILINE), name


def test_the_readme_and_the_overview_lead_to_the_pages_in_order() -> None:
    for file in ("README.md", "docs/00-overview.md"):
        found = re.findall(r"\]\([\w/]*moving-in/([\w-]+\.md)\)", (ROOT / file).read_text())
        assert tuple(found) == ORDER, file


def test_no_link_of_the_documentation_leads_nowhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("handlers/*.md"), *ROOT.glob("bench/*.md")]
    lost = [
        (str(page.relative_to(ROOT)), target)
        for page in pages
        for target in _LINK.findall(page.read_text())
        if not (page.parent / target).exists()
    ]
    assert lost == []
