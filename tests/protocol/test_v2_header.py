"""Where the JSON ends: the one number that Triton's own server was fooled with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.errors import BadRequest
from container.protocol import v2, v2_header

BINARY = v2_header.BINARY_TYPE


@given(st.integers(0, 10**15 - 1))
def test_a_size_that_is_written_is_read(size: int) -> None:
    assert v2_header.header_size(v2_header.content_type(size)) == size


@pytest.mark.parametrize(
    "content_type",
    [
        f"{BINARY};json-header-size=12",
        f"{BINARY}; json-header-size=12",
        f"{BINARY.upper()};JSON-Header-Size= 12 ;version=3",
    ],
)
def test_the_case_and_spaces_of_a_header_do_not_matter(content_type: str) -> None:
    assert v2_header.header_size(content_type) == 12


@pytest.mark.parametrize(
    "content_type", ["application/json", "", "application/octet-stream;json-header-size=x", "text"]
)
def test_other_media_types_have_no_header_size(content_type: str) -> None:
    assert v2_header.header_size(content_type) is None


SIZES = [
    "",
    "-1",
    "+1",
    "1.0",
    "0x10",
    "1e3",
    "1_000",
    "twelve",
    "12 34",
    "12,12",
    "9" * 16,
    "9" * 5000,
    "\u0661",
    '"5"',
]


@pytest.mark.parametrize("size", SIZES)
def test_a_size_that_is_no_number_of_bytes_is_refused(size: str) -> None:
    for read in (
        lambda: v2_header.header_size(f"{BINARY};json-header-size={size}"),
        lambda: v2_header.size_of(size, v2_header.HEADER),
    ):
        with pytest.raises(BadRequest) as caught:
            read()
        assert "whole number of bytes" in caught.value.message
        assert len(caught.value.message) < 200


@pytest.mark.parametrize("parameters", ["", ";", ";size=5", ";json-header-size=5;json-header-size=5"])
def test_a_size_that_is_missing_or_given_twice_is_refused(parameters: str) -> None:
    with pytest.raises(BadRequest, match="once, not"):
        v2_header.header_size(BINARY + parameters)


@given(st.text())
def test_whatever_the_header_the_outcome_is_a_size_or_an_error_of_ours(text: str) -> None:
    for content_type in (text, f"{BINARY};{text}", f"{BINARY};json-header-size={text}"):
        try:
            size = v2_header.header_size(content_type)
        except BadRequest:
            continue
        assert size is None or 0 <= size < 10**15


@given(st.binary(max_size=30), st.integers(1, 10**15 - 1))
def test_a_header_longer_than_the_body_is_refused(body: bytes, beyond: int) -> None:
    size = min(len(body) + beyond, 10**15 - 1)
    with pytest.raises(BadRequest, match="the whole body has"):
        v2.read(body, v2_header.content_type(size))
