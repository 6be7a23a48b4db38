"""The platform's calls about models, with the bodies that clients of multi-model-server know."""

from __future__ import annotations

import httpx
import pytest

from container.wire import messages as m

from .double import Engine

URL = "/opt/ml/models/abc/model"


def test_a_model_lives_from_post_to_delete(engine: Engine, client: httpx.Client) -> None:
    answer = client.post("/models", json={"model_name": "a", "url": URL, "batch_size": 4, "synchronous": True})
    assert (answer.status_code, answer.json()) == (200, {"status": "Workers scaled"})
    answer = client.post("/models", json={"model_name": "a", "url": URL})
    assert (answer.status_code, answer.json()["type"]) == (409, "ConflictStatusException")
    assert client.get("/models").json() == {"models": [{"modelName": "a", "modelUrl": URL}]}
    assert client.get("/models/a").json() == {
        "modelName": "a",
        "modelUrl": URL,
        "state": "ready",
        "tier": "device",
        "bytes": 1000,
        "sharedBytes": 250,
        "task": "echo",
        "kind": "handler",
    }
    answer = client.delete("/models/a")
    assert (answer.status_code, answer.json()) == (200, {"status": 'Model "a" unregistered', "freedBytes": 1000})
    for method in ("GET", "DELETE"):
        answer = client.request(method, "/models/a")
        assert (answer.status_code, answer.json()["type"]) == (404, "ModelNotFoundException")
    assert client.get("/models").json() == {"models": []}


def test_name_and_url_may_come_in_the_query_as_its_clients_send_them(engine: Engine, client: httpx.Client) -> None:
    assert client.post("/models", params={"model_name": "q", "url": URL + "/ö b"}).status_code == 200
    assert engine.models == {"q": URL + "/ö b"}
    assert client.post("/models?model_name=ignored&url=/x", json={"model_name": "b", "url": URL}).status_code == 200
    assert engine.models["b"] == URL


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "request.malformed"),
        (b"", "request.malformed"),
        (b"[]", "request.malformed"),
        (b"null", "request.malformed"),
        (b"\xff\xfe", "request.malformed"),
        (b"[" * 100_000, "request.malformed"),
        (b'{"url": "/x"}', "request.malformed"),
        (b'{"model_name": "a"}', "request.malformed"),
        (b'{"model_name": "a", "url": ""}', "request.malformed"),
        (b'{"model_name": "a", "url": 7}', "request.malformed"),
        (b'{"model_name": null, "url": "/x"}', "request.malformed"),
        (b'{"model_name": "a/b", "url": "/x"}', "model.name"),
        (b'{"model_name": "%61", "url": "/x"}', "model.name"),
        (b'{"model_name": "\\ud800", "url": "/x"}', "request.malformed"),
    ],
)
def test_a_load_that_cannot_be_meant_is_a_400_and_reaches_nobody(
    body: bytes, reason: str, engine: Engine, client: httpx.Client
) -> None:
    answer = client.post("/models", content=body)
    assert (answer.status_code, answer.json()["reason"]) == (400, reason)
    assert engine.seen == []


def test_a_load_of_a_megabyte_of_words_is_too_large(engine: Engine, client: httpx.Client) -> None:
    assert client.post("/models", content=b" " * ((1 << 20) + 1)).status_code == 413


def test_pages_follow_each_other_to_the_end_without_gap_or_overlap(engine: Engine, client: httpx.Client) -> None:
    engine.models.update({f"m{n:03d}": URL for n in range(10)})
    names: list[str] = []
    token = ""
    for size in (4, 4, 2):
        page = client.get("/models", params={"limit": 4, **({"next_page_token": token} if token else {})}).json()
        assert len(page["models"]) == size
        names += [each["modelName"] for each in page["models"]]
        token = page.get("nextPageToken", "")
    assert (names, token) == (sorted(engine.models), "")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=",
        "limit=ten",
        "limit=1.0",
        "limit=%C2%B2",
        "limit=" + "9" * 50,
        "next_page_token=nonsense",
        "next_page_token=" + "x" * 2000,
    ],
)
def test_a_bad_limit_or_token_is_a_400(query: str, engine: Engine, client: httpx.Client) -> None:
    answer = client.get(f"/models?{query}")
    assert (answer.status_code, answer.json()["reason"]) == (400, "request.page_token")


def test_a_query_of_thousands_of_fields_is_a_400(client: httpx.Client) -> None:
    assert client.get("/models?" + "&".join(f"a{n}=1" for n in range(500))).status_code == 400


@pytest.mark.parametrize("path", ["/models/a%2Fb", "/models/" + "x" * 257, "/models/a%20b", "/models/%C3%A4"])
def test_a_name_that_cannot_be_one_is_a_400(path: str, client: httpx.Client) -> None:
    for answer in (client.get(path), client.delete(path), client.post(path + "/invoke")):
        assert (answer.status_code, answer.json()["reason"]) == (400, "model.name")


def test_the_target_model_header_is_in_the_log_and_nowhere_else(
    engine: Engine, client: httpx.Client, front: object
) -> None:
    headers = {"X-Amzn-SageMaker-Target-Model": "folder/one.tar.gz"}
    assert client.post("/models", json={"model_name": "logged", "url": URL}, headers=headers).status_code == 200
    assert engine.seen == [m.Load(engine.seen[0].id, "logged", URL)]  # type: ignore[union-attr]
    lines = front.log_lines()  # type: ignore[attr-defined]
    (line,) = [each for each in lines if each["message"] == "loaded" and each["model"] == "logged"]
    assert (line["target_model"], line["process"]) == ("folder/one.tar.gz", "front")
