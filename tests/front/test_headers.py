"""Headers in, headers out."""

from __future__ import annotations

import pytest
from gunicorn.asgi.protocol import _validate_response_headers
from hypothesis import given
from hypothesis import strategies as st

from container.front.headers import answer_of, fields_of, payload_of
from container.payload import Payload

DEFAULT = "application/json"


def payload(**headers: str) -> Payload:
    fields = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return payload_of(b"body", fields, b"id", DEFAULT)


@pytest.mark.parametrize(
    ("headers", "accept"),
    [
        ({}, DEFAULT),
        ({"accept": "*/*"}, DEFAULT),
        ({"accept": ""}, DEFAULT),
        ({"accept": "text/csv"}, "text/csv"),
        ({"accept": "text/csv, */*;q=0.1"}, "text/csv, */*;q=0.1"),
        ({"x_amzn_sagemaker_accept": "image/png"}, "image/png"),
        ({"accept": "*/*", "x_amzn_sagemaker_accept": "image/png"}, "image/png"),
        ({"accept": "text/csv", "x_amzn_sagemaker_accept": "image/png"}, "text/csv"),
    ],
)
def test_accept_is_the_caller_s_or_the_platform_s_or_the_default(headers: dict[str, str], accept: str) -> None:
    assert payload(**headers) == Payload(b"body", DEFAULT, accept, "id")


def test_only_the_platform_s_own_headers_travel_beside_the_named_ones() -> None:
    got = payload(
        content_type="text/plain",
        x_amzn_sagemaker_session_id="s",
        x_amzn_sagemaker_custom_attributes="a=b",
        authorization="secret",
        cookie="secret",
    )
    assert got == Payload(b"body", "text/plain", DEFAULT, "id", "a=b", {"x-amzn-sagemaker-session-id": "s"})


def test_a_header_that_comes_twice_is_one_list() -> None:
    headers = [(b"accept", b"a/b"), (b"host", b"h"), (b"accept", b"c/d;q=0.5")]
    assert fields_of(headers) == {b"accept": b"a/b, c/d;q=0.5", b"host": b"h"}


@given(
    st.text(max_size=40),
    st.text(max_size=40),
    st.dictionaries(st.text(max_size=20), st.text(max_size=40)),
    st.integers(),
)
def test_no_answer_of_a_model_can_break_the_framing(
    content_type: str, attributes: str, headers: dict[str, str], status: int
) -> None:
    given_headers = {**headers, "Transfer-Encoding": "chunked", "content-LENGTH": "7", "Connection": "close"}
    answer = answer_of(
        Payload(b"body", content_type, attributes=attributes, headers=given_headers, status=status), b"id"
    )
    _validate_response_headers(answer.headers)
    names = [name.lower() for name, _ in answer.headers]
    assert names[:3] == [b"content-type", b"content-length", b"x-amzn-sagemaker-inference-id"]
    assert not {b"transfer-encoding", b"content-length", b"connection"} & set(names[3:])
    assert dict(answer.headers)[b"content-length"] == b"%d" % len(answer.body)
    assert 200 <= answer.status <= 599
