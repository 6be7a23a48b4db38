"""KServe v2 as the front sees it: what reaches the engine, and what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.errors import BadMethod, ModelExists, ModelNotFound, NoRoute
from container.front import routes
from container.payload import Payload
from container.protocol import v2_header
from container.wire import messages as m

from .inside import Got, Stub, app_with, ask

NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,256}", fullmatch=True)
BINARY = v2_header.BINARY_TYPE
NET = m.Description(
    0,
    "net",
    "/models/net",
    "ready",
    "disk",
    1000,
    task="tensors",
    kind="triton",
    version="3",
    inputs=[m.Port("x", "FP32", [-1, 4])],
    outputs=[m.Port("y", "BYTES", [1])],
)
CAT = m.Description(0, "cat", "/models/cat", "ready", "device", 1000, task="", kind="script")
SICK = m.Description(0, "sick", "/models/sick", "quarantined", "disk", 0, reason="it died twice", kind="script")


class Models:
    """An engine's memory of its models; ``seen`` is what was asked of it."""

    def __init__(self, *known: m.Description) -> None:
        self.known = {each.name: each for each in known}
        self.seen: list[m.Request] = []

    def __call__(self, request: m.Request) -> m.Reply:
        self.seen.append(request)
        match request:
            case m.Describe():
                if request.name not in self.known:
                    raise ModelNotFound(f"no model {request.name!r} is registered")
                return self.known[request.name]
            case m.Load():
                if request.name in self.known:
                    raise ModelExists("there already")
                return m.Loaded(0, 1)
            case m.Unload():
                if request.name not in self.known:
                    raise ModelNotFound(f"no model {request.name!r} is registered")
                return m.Unloaded(0, 1)
            case m.List():
                names = [name for name in sorted(self.known) if name > request.token]
                page = [m.Entry(name, "") for name in names[:2]]
                return m.Page(0, page, page[-1].name if len(names) > 2 else "")
        raise AssertionError(request)


def get(
    tmp_path: Path,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Iterable[tuple[str, str]] = (),
    *,
    models: Models | None = None,
    invoke: Any = None,
    **environ: str,
) -> Got:
    app = app_with(Stub(invoke, models or Models(NET, CAT, SICK)), tmp_path, **environ)
    return asyncio.run(ask(app, method, path, body, headers))


# --- paths -----------------------------------------------------------------------------------------------------------


@given(NAMES, st.from_regex(r"[0-9]{1,5}", fullmatch=True))
def test_a_good_name_and_version_are_found(name: str, version: str) -> None:
    for suffix, method, plain, versioned in (
        ("", "GET", routes.V2_MODEL, routes.V2_VERSION),
        ("/ready", "GET", routes.V2_MODEL_READY, routes.V2_VERSION_READY),
        ("/infer", "POST", routes.V2_INFER, routes.V2_VERSION_INFER),
    ):
        path = f"/v2/models/{name}{suffix}".encode()
        assert (routes.match(path, method), routes.version_of(path)) == ((plain, name), "")
        path = f"/v2/models/{name}/versions/{version}{suffix}".encode()
        assert (routes.match(path, method), routes.version_of(path)) == ((versioned, name), version)
    for verb, operation in (("load", routes.V2_LOAD), ("unload", routes.V2_UNLOAD)):
        assert routes.match(f"/v2/repository/models/{name}/{verb}".encode(), "POST") == (operation, name)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/",
        "/v2/health",
        "/v2/health/dead",
        "/v2/models",
        "/v2/models/",
        "/v2/models//infer",
        "/v2/models/a/b/infer",
        "/v2/models/a/infer/",
        "/v2/models/a/versions/infer/x",
        "/v2/models/a/versions//infer",
        "/v2/models/a/explain",
        "/v2/models/a/versions/1/versions/2/infer",
        "/v2/repository/models/a",
        "/v2/repository/models/a/infer",
        "/v2/repository/models/a/versions/1/load",
        "/v2x",
    ],
)
def test_a_path_that_only_looks_like_one_is_not_found(path: str, tmp_path: Path) -> None:
    with pytest.raises(NoRoute):
        routes.match(path.encode(), "POST")
    got = get(tmp_path, "POST", path)
    assert got.status == 404
    if path != "/v2x":
        assert got.json == {
            "error": f"no such path: {path}; /openapi.json lists those there are",
            "reason": "request.no_route",
        }


def test_a_wrong_method_is_told_the_right_ones(tmp_path: Path) -> None:
    for path, method, allow in (
        ("/v2", "POST", "GET, HEAD"),
        ("/v2/models/a/infer", "GET", "POST"),
        ("/v2/models/a/versions/1/ready", "POST", "GET, HEAD"),
        ("/v2/repository/index", "GET", "POST"),
    ):
        with pytest.raises(BadMethod):
            routes.match(path.encode(), method)
        got = get(tmp_path, method, path)
        assert (got.status, got.headers["allow"], got.json["reason"]) == (405, allow, "request.method")
        assert routes.allowed(b"http://host" + path.encode()) == allow


@given(st.binary(max_size=60), st.sampled_from(["GET", "POST", "HEAD"]))
def test_whatever_comes_behind_v2_the_answer_is_a_route_or_an_error_of_ours(tail: bytes, method: str) -> None:
    from container.errors import ServingError

    for start in (b"/v2", b"/v2/", b"/v2/models/", b"/v2/models/a/versions/", b"/v2/repository/models/"):
        for path in (start + tail, start + tail + b"/infer", start + tail + b"/load"):
            try:
                operation, _ = routes.match(path, method)
                assert any(operation in methods.values() for methods in routes.ROUTES.values())
                routes.version_of(path)
            except BadMethod:
                assert routes.allowed(path)
            except ServingError as error:
                assert error.code in ("request.no_route", "model.name")


# --- inference -------------------------------------------------------------------------------------------------------


class Answers:
    """A model that answers with one payload and remembers what it was asked."""

    def __init__(self, answer: Payload) -> None:
        self.answer = answer
        self.model = ""
        self.payload = Payload(b"")

    async def __call__(self, model: str, payload: Payload, deadline: float) -> Payload:
        self.model, self.payload = model, payload
        return self.answer


@pytest.mark.parametrize(
    ("path", "headers", "content_type"),
    [
        ("/v2/models/net/infer", {}, v2_header.JSON_TYPE),
        ("/v2/models/net/infer", {"content-type": "application/json"}, v2_header.JSON_TYPE),
        ("/v2/models/net/infer", {"content-type": "application/octet-stream"}, v2_header.JSON_TYPE),
        ("/v2/models/net/versions/3/infer", {}, f"{v2_header.JSON_TYPE};version=3"),
        ("/v2/models/net/infer", {"inference-header-content-length": "25"}, f"{BINARY};json-header-size=25"),
        ("/v2/models/net/infer", {"inference-header-content-length": " 0 "}, f"{BINARY};json-header-size=0"),
        (
            "/v2/models/net/versions/3/infer",
            {"inference-header-content-length": "25", "content-type": "application/octet-stream"},
            f"{BINARY};json-header-size=25;version=3",
        ),
        ("/v2/models/net/infer", {"content-type": f"{BINARY};json-header-size=7"}, f"{BINARY};json-header-size=7"),
    ],
)
def test_the_engine_is_told_that_it_is_v2_and_where_the_json_ends(
    path: str, headers: dict[str, str], content_type: str, tmp_path: Path
) -> None:
    model = Answers(Payload(b"{}"))
    got = get(tmp_path, "POST", path, b"body", headers.items(), invoke=model)
    assert (got.status, got.headers["content-type"], got.body) == (200, "application/json", b"{}")
    assert (model.model, model.payload.body, model.payload.content_type) == ("net", b"body", content_type)


def test_an_answer_with_binary_tensors_says_in_a_header_where_its_json_ends(tmp_path: Path) -> None:
    model = Answers(Payload(b"{}\0\0\0\0", f"{BINARY};json-header-size=2"))
    got = get(tmp_path, "POST", "/v2/models/net/infer", invoke=model)
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["inference-header-content-length"] == "2"
    assert (got.headers["content-length"], got.body) == ("6", b"{}\0\0\0\0")


@pytest.mark.parametrize("size", ["-1", "abc", "1.5", "", "99999999999999999999", "1_0", "0x1"])
def test_a_header_size_that_is_none_is_refused_before_the_body_is_read(size: str, tmp_path: Path) -> None:
    model = Answers(Payload(b"{}"))
    got = get(tmp_path, "POST", "/v2/models/net/infer", b"x", [("Inference-Header-Content-Length", size)], invoke=model)
    assert (got.status, got.json["reason"], list(got.json)) == (400, "request.malformed", ["error", "reason"])
    assert "whole number of bytes" in got.json["error"]
    assert model.model == ""


def test_a_header_size_that_comes_twice_is_refused(tmp_path: Path) -> None:
    twice = [("Inference-Header-Content-Length", "5"), ("Inference-Header-Content-Length", "5")]
    assert get(tmp_path, "POST", "/v2/models/net/infer", b"xxxxx", twice).status == 400


def test_a_failure_keeps_its_status_and_id_and_has_the_protocols_body(tmp_path: Path) -> None:
    async def missing(model: str, payload: Payload, deadline: float) -> Payload:
        raise ModelNotFound("no model 'a' is registered")

    sent = [("X-Amzn-SageMaker-Inference-Id", "seven")]
    got = get(tmp_path, "POST", "/v2/models/a/infer", b"", sent, invoke=missing)
    assert (got.status, got.json) == (404, {"error": "no model 'a' is registered", "reason": "model.not_found"})
    assert got.headers["x-amzn-sagemaker-inference-id"] == "seven"
    assert got.headers["content-length"] == str(len(got.body))


def test_what_is_too_large_or_encoded_is_refused_in_the_protocols_form(tmp_path: Path) -> None:
    large = get(tmp_path, "POST", "/v2/models/a/infer", b"x" * (1 << 20 | 1), SAGEMAKER_MAX_PAYLOAD_IN_MB="1")
    assert (large.status, large.json["reason"]) == (413, "request.too_large")
    packed = get(tmp_path, "POST", "/v2/models/a/infer", b"x", [("content-encoding", "gzip")])
    assert (packed.status, packed.json["reason"]) == (415, "request.media_type")


def test_the_single_model_answers_to_its_folders_name_too(tmp_path: Path) -> None:
    single = {"SAGEMAKER_MULTI_MODEL": "", "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME": "resnet"}
    model = Answers(Payload(b"{}"))
    get(tmp_path, "POST", "/v2/models/resnet/infer", invoke=model, **single)
    assert model.model == "model"
    get(tmp_path, "POST", "/v2/models/other/infer", invoke=model, **single)
    assert model.model == "other"
    get(tmp_path, "POST", "/v2/models/resnet/infer", invoke=model, SAGEMAKER_TRITON_DEFAULT_MODEL_NAME="resnet")
    assert model.model == "resnet", "with many models the name has no second meaning"


# --- metadata, health, repository ------------------------------------------------------------------------------------


def test_metadata_tells_the_tensors_and_the_version(tmp_path: Path) -> None:
    for path in ("/v2/models/net", "/v2/models/net/versions/3"):
        assert get(tmp_path, "GET", path).json == {
            "name": "net",
            "versions": ["3"],
            "platform": "berth_tensors",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [{"name": "y", "datatype": "BYTES", "shape": [1]}],
        }
    cat = get(tmp_path, "GET", "/v2/models/cat").json
    assert (cat["versions"], cat["platform"], cat["inputs"]) == (["1"], "berth_script", [])
    wrong = get(tmp_path, "GET", "/v2/models/net/versions/4")
    assert (wrong.status, wrong.json["error"]) == (404, "model 'net' has no version '4'; served is 3")
    assert get(tmp_path, "GET", "/v2/models/none").status == 404


def test_a_model_is_ready_wherever_it_lies_but_not_when_it_is_kept_out(tmp_path: Path) -> None:
    assert get(tmp_path, "GET", "/v2/models/net/ready").json == {"ready": True}
    sick = get(tmp_path, "GET", "/v2/models/sick/ready")
    assert (sick.status, sick.json) == (503, {"ready": False, "error": "model 'sick' is quarantined it died twice"})
    assert get(tmp_path, "GET", "/v2/models/none/ready").status == 404


def test_a_server_whose_single_model_still_loads_lives_and_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.pbtxt").write_text("")
    live = get(tmp_path, "GET", "/v2/health/live", SAGEMAKER_MULTI_MODEL="")
    assert (live.status, live.json) == (200, {"live": True})
    ready = get(tmp_path, "GET", "/v2/health/ready", SAGEMAKER_MULTI_MODEL="")
    assert (ready.status, ready.json["ready"]) == (503, False)
    assert get(tmp_path, "GET", "/v2/health/ready").json == {"ready": True}


def test_the_server_names_itself_and_its_extensions(tmp_path: Path) -> None:
    told = get(tmp_path, "GET", "/v2").json
    assert (told["name"], told["extensions"]) == ("berth", ["binary_tensor_data", "model_repository"])


def test_the_index_lists_all_pages(tmp_path: Path) -> None:
    assert get(tmp_path, "POST", "/v2/repository/index", b"{}").json == [
        {"name": name, "state": "READY", "reason": ""} for name in ("cat", "net", "sick")
    ]


def test_a_load_finds_the_folder_by_name_or_takes_the_one_it_is_told(tmp_path: Path) -> None:
    for folder in ("models/a/model", "models/b", "repository/c", "repository/a"):
        (tmp_path / folder).mkdir(parents=True)
    repository = {"BERTH_MODELS": str(tmp_path / "repository")}
    told = json.dumps({"parameters": {"url": "/elsewhere"}}).encode()
    for name, body, environ, url in (
        ("a", b"", {}, tmp_path / "models/a/model"),
        ("b", b"{}", {}, tmp_path / "models/b"),
        ("a", b"", repository, tmp_path / "repository/a"),
        ("c", b'{"parameters": {}}', repository, tmp_path / "repository/c"),
        ("c", told, {}, Path("/elsewhere")),
    ):
        models = Models()
        got = get(tmp_path, "POST", f"/v2/repository/models/{name}/load", body, models=models, **environ)
        assert (got.status, got.body, models.seen) == (200, b"", [m.Load(0, name, str(url))])


def test_a_load_of_what_is_loaded_is_fine_and_of_what_is_nowhere_is_not(tmp_path: Path) -> None:
    (tmp_path / "models/net").mkdir(parents=True)
    assert get(tmp_path, "POST", "/v2/repository/models/net/load").status == 200
    missing = get(tmp_path, "POST", "/v2/repository/models/none/load")
    assert (missing.status, missing.json["reason"]) == (404, "model.missing")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "the body is not"),
        (b"[]", "the body is not"),
        (b'{"parameters": {"url": 5}}', "the body is not"),
        (b'{"parameters": {"config": "{}"}}', "write it into the model's config.pbtxt"),
        (b'{"x": ' + b"[" * 100_000, "the body is not"),
    ],
)
def test_a_load_that_cannot_be_read_is_refused(body: bytes, said: str, tmp_path: Path) -> None:
    got = get(tmp_path, "POST", "/v2/repository/models/a/load", body)
    assert got.status == 400
    assert said in got.json["error"]


def test_an_unload_forgets_the_model(tmp_path: Path) -> None:
    models = Models(NET)
    assert get(tmp_path, "POST", "/v2/repository/models/net/unload", models=models).status == 200
    assert models.seen == [m.Unload(0, "net")]
    assert get(tmp_path, "POST", "/v2/repository/models/none/unload").status == 404
