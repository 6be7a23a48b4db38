from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container.protocol import media

OFFERED = ("application/json", "text/csv", "text/plain", "application/x-npy")


@pytest.mark.parametrize(
    ("text", "kind", "parameters"),
    [
        ("", "application/json", {}),
        ("  ", "application/json", {}),
        ("application/json", "application/json", {}),
        ("Application/JSON; Charset=UTF-8", "application/json", {"charset": "UTF-8"}),
        ('text/plain ; charset="utf-8"', "text/plain", {"charset": "utf-8"}),
        (r'a/b; x="1;2,\"3\""; y=4', "a/b", {"x": '1;2,"3"', "y": "4"}),
        ('a/b; x="never closed', "a/b", {"x": "never closed"}),
        (r'a/b; x="\\";y=2', "a/b", {"x": "\\", "y": "2"}),
        ("text/csv;;header=present;", "text/csv", {"header": "present"}),
        ("a/b; flag; x=1; x=2", "a/b", {"x": "1"}),
        (
            "application/vnd.sagemaker-triton.binary+json;json-header-size=12",
            "application/vnd.sagemaker-triton.binary+json",
            {"json-header-size": "12"},
        ),
        ("nonsense", "nonsense", {}),
    ],
)
def test_a_content_type_is_its_type_and_its_parameters(text: str, kind: str, parameters: dict[str, str]) -> None:
    parsed = media.parse(text)
    assert (parsed.type, dict(parsed.parameters)) == (kind, parameters)


def test_a_cached_content_type_cannot_be_changed_by_who_got_it() -> None:
    with pytest.raises(TypeError):
        media.parse("text/csv; a=1").parameters["a"] = "2"  # type: ignore[index]


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("*", "application/json"),
        ("text/csv", "text/csv"),
        ("TEXT/CSV", "text/csv"),
        ("text/*", "text/csv"),
        ("application/json, */*", "application/json"),
        ("text/csv, */*;q=0.1", "text/csv"),
        ("text/csv, application/json", "text/csv"),
        ("text/csv;q=0.5, application/json", "application/json"),
        ("text/csv;q=0.2, text/plain;q=0.3", "text/plain"),
        ("application/json;q=0, */*", "text/csv"),
        ("*/*, text/plain", "text/plain"),
        ("text/*;q=0.9, text/csv;q=0.1", "text/plain"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
        ("application/json; charset=utf-8; q=0.3, text/csv; q=.4", "text/csv"),
        ("text/csv;q=much", "text/csv"),
        (", ,text/csv,", "text/csv"),
    ],
)
def test_the_most_wanted_type_that_is_offered_is_chosen(accept: str, chosen: str) -> None:
    assert media.rank(accept, OFFERED)[0] == chosen


def test_what_one_range_covers_comes_with_the_default_first() -> None:
    assert media.rank("*/*", OFFERED, "text/plain") == ("text/plain", "application/json", "text/csv", OFFERED[3])
    assert media.rank("", OFFERED, "text/plain")[0] == "text/plain"


def test_a_default_that_is_not_offered_gives_way_to_the_first_offered() -> None:
    assert media.rank("", ("text/csv", "text/plain"), "image/png")[0] == "text/csv"


@pytest.mark.parametrize("accept", ["image/png", "image/*", "application/json;q=0", "*/*;q=0", "nonsense"])
def test_an_accept_that_nothing_satisfies_leaves_nothing(accept: str) -> None:
    assert media.rank(accept, ("application/json", "text/csv")) == ()


header = st.text(st.sampled_from('abc/*;,="\\q01. \t'), max_size=40) | st.text(max_size=20)


@settings(deadline=None)
@given(header)
def test_any_header_at_all_can_be_parsed(text: str) -> None:
    parsed = media.parse(text)
    assert parsed.type == parsed.type.lower() != ""


@settings(deadline=None)
@given(header)
def test_ranking_is_a_choice_among_what_is_offered_each_once(text: str) -> None:
    ranked = media.rank(text, OFFERED)
    assert set(ranked) <= set(OFFERED)
    assert len(set(ranked)) == len(ranked)


token = st.text(st.sampled_from("abcdefgh-+.123"), min_size=1, max_size=8)


@settings(deadline=None)
@given(token, token, st.dictionaries(token, st.text(st.characters(codec="ascii", categories=["L", "N", "P"]))))
def test_a_quoted_parameter_comes_back_whatever_is_in_it(main: str, sub: str, parameters: dict[str, str]) -> None:
    quoted = "".join(
        '; {}="{}"'.format(name, value.replace("\\", "\\\\").replace('"', '\\"')) for name, value in parameters.items()
    )
    parsed = media.parse(f"{main}/{sub}{quoted}")
    assert (parsed.type, dict(parsed.parameters)) == (f"{main}/{sub}", parameters)
