"""Which model is meant is said by the path and by nothing else; what stands in it reaches nobody's files."""

from __future__ import annotations

import pytest

from tests.server import Server

NAMES = ["%2e%2e", "..%2f..%2fetc%2fpasswd", "a%0d%0aX-Evil:%201", "a%00b", "%ff%fe", "%25", "%", "%zz", "a;b"]
NAMES += [
    "%F0%9F%98%80",
    "a" * 257,
    "a" * 5000,
    "~",
    "a%20b",
    "fine%00",
    "fine%2finvoke",
    "FINE",
    "fine.",
    ".fine",
    "\\",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_strange_name_is_nobody(server: Server, name: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/invoke")):
        answer = server.http.request(method, f"/models/{name}{path}", content=b"[1]" if path else None)
        assert answer.status_code in (400, 404, 405, 414), (method, answer.text)
        assert "x-evil" not in answer.headers


@pytest.mark.parametrize("target", ["bert", "bert.tar.gz", "../fine", "/etc/passwd", "a\tb", "x" * 4000, '"%n%s{}', ""])
def test_the_target_model_header_never_picks_the_model(server: Server, target: str) -> None:
    fields = {"X-Amzn-SageMaker-Target-Model": target}
    assert server.http.post("/models/fine/invoke", json=[7], headers=fields).json() == [7]
    assert server.http.post("/invocations", json=[7], headers=fields).status_code == 404
    gone = server.http.delete("/models/nobody", headers=fields)
    assert (gone.status_code, gone.json()["reason"]) == (404, "model.not_found")
    other = server.http.post("/models", json={"model_name": "nobody", "url": "/opt/none"}, headers=fields)
    assert other.json()["reason"] == "model.path"


URLS = [
    "/",
    "",
    ".",
    "..",
    "~",
    "/etc",
    "/proc/self/cwd",
    "/proc/1/root",
    "/dev/fd/0",
    "file:///etc",
    "file://../..",
    "a\0b",
]
URLS += ["s3://bucket/key", "https://example.org/m.tar.gz", "//etc", "\\\\host\\share", "/opt/ml/models/../../../etc"]
URLS += ["x" * 100_000, "/opt/ml/models/%2e%2e/%2e%2e/etc", "${HOME}", "$(id)", "/var/lib/berth/unpacked"]


@pytest.mark.parametrize("url", URLS, ids=[url[:30] for url in URLS])
def test_a_url_outside_the_models_folder_is_refused(server: Server, url: str) -> None:
    answer = server.http.post("/models", json={"model_name": "stranger", "url": url})
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["reason"] in ("model.path", "model.missing", "request.malformed")


def test_a_url_that_climbs_out_through_a_link_in_the_models_folder_is_refused(server: Server) -> None:
    (server.base / "models" / "up").symlink_to("/")
    for url in (f"{server.base}/models/up/etc", f"{server.base}/models/up"):
        answer = server.http.post("/models", json={"model_name": "stranger", "url": url})
        assert (answer.status_code, answer.json()["reason"]) == (400, "model.path")


@pytest.mark.parametrize(
    "query", ["next_page_token=" + "41" * 2000, "limit=" + "9" * 5000, "limit=%00", "&" * 5000, "a[]=1"]
)
def test_a_strange_query_is_refused_or_ignored(server: Server, query: str) -> None:
    assert server.http.get(f"/models?{query}").status_code in (200, 400, 414)


@pytest.mark.parametrize(
    "body", [b'{"mod\x9b\x92_name": "a"}', b'{"model_name": "\xff"}', b"[" * 100_000, b"\0", b"nul"]
)
def test_a_load_that_is_no_json_is_a_bad_request(server: Server, body: bytes) -> None:
    answer = server.http.post("/models", content=body)
    assert (answer.status_code, answer.json()["reason"]) == (400, "request.malformed"), answer.text
