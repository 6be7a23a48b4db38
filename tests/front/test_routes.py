"""Paths to operations."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.errors import BadMethod, BadName, NoRoute, ServingError
from container.front import routes

NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,256}", fullmatch=True)


@given(NAMES, st.booleans())
def test_a_good_name_is_found_whether_encoded_or_not(name: str, encoded: bool) -> None:
    raw = ("".join(f"%{byte:02x}" for byte in name.encode()) if encoded else name).encode()
    assert routes.match(b"/models/" + raw + b"/invoke", "POST") == ("invoke_model", name)
    if raw not in (b"invoke",):
        assert routes.match(b"/models/" + raw, "GET") == ("describe_model", name)
        assert routes.match(b"/models/" + raw, "DELETE") == ("unload_model", name)


@given(st.text(min_size=1, max_size=300))
def test_any_other_name_is_refused_by_name(name: str) -> None:
    text = name.encode("utf-8", "surrogatepass")
    raw = quote(text, safe="").encode()
    if re.fullmatch(r"[A-Za-z0-9._-]{1,256}", name):
        assert routes.match(b"/models/" + raw, "GET") == ("describe_model", name)
    else:
        with pytest.raises(BadName):
            routes.match(b"/models/" + raw, "GET")


@given(st.binary(max_size=300), st.sampled_from(["GET", "POST", "HEAD", "DELETE", "PUT", "OPTIONS"]))
def test_whatever_the_path_the_answer_is_a_route_or_an_error_of_ours(path: bytes, method: str) -> None:
    for raw in (path, b"/" + path, b"/models/" + path, b"/models/" + path + b"/invoke"):
        try:
            operation, _ = routes.match(raw, method)
            assert any(operation in methods.values() for methods in routes.ROUTES.values())
        except BadMethod:
            assert routes.allowed(raw)
        except ServingError as error:
            assert error.code in ("request.no_route", "model.name")


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/ping/",
        b"/PING",
        b"//ping",
        b"/models/",
        b"/models//invoke",
        b"/models/a/b",
        b"/models/a/invoke/",
        b"/models/a/v1/invoke",
        b"/modelsx",
        b"/metrics/x",
        b"*",
        b"/..",
        b"/models/a/../b/invoke",
    ],
)
def test_a_path_that_only_looks_like_one_is_not_found(path: bytes) -> None:
    with pytest.raises(NoRoute):
        routes.match(path, "POST")


@pytest.mark.parametrize(("name", "why"), [(b"a%2Fb", "slash"), (b"a%252e", "decoded once"), (b"%zz", "no code")])
def test_decoding_happens_once_and_after_the_path_was_cut(name: bytes, why: str) -> None:
    with pytest.raises(BadName):
        routes.match(b"/models/" + name + b"/invoke", "POST")


def test_the_absolute_form_of_a_target_is_understood() -> None:
    assert routes.match(b"http://host:80/ping", "GET") == ("ping", "")
    assert routes.match(b"HTTP://host", "GET") == ("page", "")
    assert routes.allowed(b"http://host/models") == "GET, POST, HEAD"


@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [
        (b"/ping", "POST", "GET, HEAD"),
        (b"/invocations", "GET", "POST"),
        (b"/models", "DELETE", "GET, POST, HEAD"),
        (b"/models/a", "POST", "GET, DELETE, HEAD"),
        (b"/models/a/invoke", "HEAD", "POST"),
        (b"/", "PUT", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(path: bytes, method: str, allow: str) -> None:
    with pytest.raises(BadMethod):
        routes.match(path, method)
    assert routes.allowed(path) == allow
