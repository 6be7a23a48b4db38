"""The multi-model contract through both doors: contract.md section 2, column "recommended" of section 6.

Where Java's front leaves no choice, ``differences`` says what it does instead.
"""

from __future__ import annotations

import concurrent.futures
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.makers import tiny_bert
from tests.server import Server, write_handler, write_script

Expected = Callable[[str], Any]

ECHO = """
from container.handler import Handler

class Echo(Handler):
    def predict(self, batch):
        return batch
"""

SCRIPT = """
import json, utils

def model_fn(model_dir):
    return utils.NAME

def predict_fn(data, model):
    import lazy
    return {"model": model, "lazy": lazy.NAME, "got": data}

def input_fn(body, content_type):
    return json.loads(body)
"""


def check_refused(answer: httpx.Response, status: int, reason: str, *words: str) -> None:
    """The engine's errors are told in the same words at both doors."""
    body = answer.json()
    assert (answer.status_code, body["code"], body["reason"]) == (status, status, reason), body
    for word in words:
        assert word in body["message"], body
    assert "Traceback" not in answer.text


def test_a_server_without_models_is_healthy_and_lists_nothing(server: Server) -> None:
    assert server.http.get("/ping").status_code == 200
    assert server.http.get("/models").json()["models"] == []
    for answer in (server.http.get("/models/nobody"), server.unload("nobody"), server.invoke("nobody", {})):
        assert (answer.status_code, answer.json()["type"]) == (404, "ModelNotFoundException")


def test_load_invoke_list_describe_unload_of_each_kind_in_order(server: Server, expected: Expected) -> None:
    tiny_bert(server.folder("bert"))
    write_script(server.folder("script"), SCRIPT, utils="NAME = 'here'", lazy="NAME = 'late'")
    write_handler(server.folder("echo"), ECHO)
    for name in ("bert", "script", "echo"):
        answer = server.load(name)
        assert (answer.status_code, answer.json()) == (200, {"status": "Workers scaled"}), server.log()
        again = server.load(name)
        assert (again.status_code, again.json()["type"]) == (409, "ConflictStatusException")
        assert ("reason" in again.json()) is expected("reason of Java's own errors")
    assert server.names() == ["bert", "echo", "script"]
    vectors = server.invoke("bert", {"inputs": ["a b c", "d"]}).raise_for_status().json()
    assert np.asarray(vectors).shape == (2, 32)
    assert server.invoke("script", [1]).json() == {"model": "here", "lazy": "late", "got": [1]}
    assert server.invoke("echo", {"x": [1.5, None]}).json() == {"x": [1.5, None]}
    described = server.describe("bert")
    assert (described["modelName"], described["modelUrl"]) == ("bert", str(server.folder("bert")))
    assert expected("describe") <= described.keys()
    for name in ("bert", "script", "echo"):
        gone = server.unload(name)
        assert (gone.status_code, gone.json()["status"]) == (200, f'Model "{name}" unregistered')
        assert ("freedBytes" in gone.json()) is expected("freedBytes")
        assert server.invoke(name, {}).status_code == 404
        assert server.unload(name).status_code == 404
    assert server.names() == []


def test_listing_is_paged(server: Server, expected: Expected) -> None:
    names = [f"page{number}" for number in range(3)]
    for name in names:
        write_handler(server.folder(name), ECHO)
        assert (answer := server.load(name)).status_code == 200, answer.text
    first = server.http.get("/models", params={"limit": 2}).json()
    assert [model["modelName"] for model in first["models"]] == ["page0", "page1"]
    second = server.http.get("/models", params={"limit": 2, "next_page_token": first["nextPageToken"]}).json()
    assert [model["modelName"] for model in second["models"]] == ["page2"]
    assert "nextPageToken" not in second
    whole = server.http.get("/models", params={"limit": 3}).json()
    assert ("nextPageToken" in whole) is expected("token after the last page")
    assert server.http.get("/models", params={"next_page_token": "zz"}).status_code == expected("bad page token")
    for name in names:
        server.unload(name).raise_for_status()


@pytest.mark.parametrize("content_type", ["application/x-npy", "application/json; charset=utf-8", "text/csv"])
def test_content_types_in_and_accept_out(server: Server, content_type: str) -> None:
    if "echo2" not in server.names():
        write_handler(server.folder("echo2"), ECHO)
        server.load("echo2").raise_for_status()
    array = np.arange(6.0).reshape(2, 3)
    buffer = io.BytesIO()
    np.save(buffer, array)
    body = {"text/csv": b"0,1,2\n3,4,5\n", "application/x-npy": buffer.getvalue()}.get(
        content_type, b"[[0,1,2],[3,4,5]]"
    )
    answer = server.invoke("echo2", body, content_type=content_type, accept="text/plain;q=0.1, application/x-npy;q=0.9")
    assert answer.headers["content-type"].startswith("application/x-npy"), answer.text
    assert np.load(io.BytesIO(answer.content)).tolist() == array.tolist()


def test_the_callers_own_mistakes_are_told_in_the_same_words(server: Server) -> None:
    write_handler(server.folder("fine"), ECHO)
    server.load("fine").raise_for_status()
    check_refused(server.invoke("fine", b'{"inputs": '), 400, "request.malformed", "JSON")
    check_refused(server.invoke("fine", b""), 400, "request.malformed", "empty")
    check_refused(server.invoke("fine", b"x", content_type="application/x-unheard-of"), 415, "request.media_type")
    form = server.invoke("fine", b"a=b", content_type="application/x-www-form-urlencoded")
    check_refused(form, 415, "request.media_type", "-H", "application/json")
    check_refused(server.invoke("fine", [1], accept="video/mp4"), 406, "request.not_acceptable")
    answer = server.invoke("fine", [1], x_amzn_sagemaker_inference_id="call-7")
    assert answer.headers["x-amzn-sagemaker-inference-id"] == "call-7"


def test_a_model_that_fails_is_told_with_its_own_message(server: Server) -> None:
    write_handler(server.folder("raises"), ECHO.replace("return batch", "raise ValueError('not today')"))
    server.load("raises").raise_for_status()
    check_refused(server.invoke("raises", 1), 500, "model.failed", "not today")
    slow = "import time\n" + ECHO.replace("return batch", "time.sleep(2)\n        return batch")
    write_handler(server.folder("sleeps"), slow, timeout_s=0.5, isolation="own")  # its process is killed
    server.load("sleeps").raise_for_status()
    check_refused(server.invoke("sleeps", 1), 504, "model.timeout", "timeout_s")


def test_loads_that_fail_leave_the_name_free(server: Server, expected: Expected, tmp_path: Path) -> None:
    server.folder("empty").mkdir(parents=True)
    assert server.load("empty").status_code == expected("broken archive")
    write_handler(server.folder("import_raises"), "raise RuntimeError('no such card')")
    assert server.load("import_raises").status_code == expected("code raises at load")
    assert "no such card" in server.log()
    write_handler(tmp_path, ECHO)
    assert server.load("outside", tmp_path).status_code == expected("path outside")
    assert server.load("missing").status_code == 404
    assert server.load("a b", write_handler(server.folder("odd"), ECHO)).status_code == expected("bad name")
    assert not {"empty", "import_raises", "outside", "missing", "a b"} & set(server.names())
    write_handler(server.folder("empty"), ECHO)
    assert server.load("empty").status_code == 200
    assert server.invoke("empty", [3]).json() == [3]
    answer = server.http.post("/models", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == expected("load request not JSON")


def test_a_body_of_25_mib_goes_through_and_one_over_it_is_refused(server: Server, expected: Expected) -> None:
    write_handler(server.folder("large"), ECHO)
    server.load("large").raise_for_status()
    body = bytes(25 << 20)
    answer = server.invoke("large", body, content_type="application/octet-stream", accept="application/octet-stream")
    assert answer.status_code == 200, answer.text[:200]
    assert answer.content == body
    over = server.invoke("large", body + b"1", content_type="application/octet-stream")
    assert over.status_code == 413
    assert (b"request.too_large" in over.content) is expected("body over the limit says why")


def test_two_archives_with_the_same_module_names_each_run_their_own_code_from_many_threads(server: Server) -> None:
    for name in ("left", "right"):
        write_script(server.folder(name), SCRIPT, utils=f"NAME = '{name}'", lazy=f"NAME = 'late {name}'")
        assert (answer := server.load(name)).status_code == 200, answer.text

    def call(number: int) -> tuple[str, str]:
        name = ("left", "right")[number % 2]
        answer = server.invoke(name, number).json()
        assert answer["got"] == number
        return answer["model"], answer["lazy"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(call, range(60)))
    assert answers == [("left", "late left"), ("right", "late right")] * 30
    server.unload("left").raise_for_status()
    write_script(server.folder("left2"), SCRIPT, utils="NAME = 'new'", lazy="NAME = 'late new'")
    server.load("left2").raise_for_status()
    assert server.invoke("left2", 0).json()["model"] == "new"
    assert server.invoke("right", 0).json()["model"] == "right"
    server.unload("left2"), server.unload("right")


def test_a_second_load_gets_409_and_a_call_during_the_first_waits_for_it(server: Server, expected: Expected) -> None:
    slow = "import time\n" + ECHO + "\n    def load(self, model_dir, context):\n        time.sleep(2)\n"
    write_handler(server.folder("slow"), slow)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        first = pool.submit(server.load, "slow")
        time.sleep(1)
        second = pool.submit(server.load, "slow")
        call = pool.submit(server.invoke, "slow", [7])
        time.sleep(0.3)
        assert ("slow" in server.names()) is expected("listed while loading")
        assert second.done() is (expected("second load meanwhile") == "at once")
        assert first.result().status_code == 200
        assert second.result().status_code == 409
        assert call.result().json() == [7]
    server.unload("slow").raise_for_status()


def test_unload_while_a_request_is_in_flight(server: Server, expected: Expected) -> None:
    slow = "import time\n" + ECHO.replace("return batch", "time.sleep(1.0)\n        return batch")
    write_handler(server.folder("lingers"), slow)
    server.load("lingers").raise_for_status()

    def status() -> int | None:
        try:
            url = f"http://127.0.0.1:{server.port}/models/lingers/invoke"
            return httpx.post(url, json=[1], timeout=4).status_code
        except httpx.ReadTimeout:
            return None

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        call = pool.submit(status)
        time.sleep(0.4)
        gone = pool.submit(server.unload, "lingers")
        time.sleep(0.2)
        assert server.invoke("lingers", [2]).status_code == 404
        assert call.result() in expected("unload in flight")
        assert gone.result().status_code == 200


def test_callers_of_one_model_run_together(server: Server, expected: Expected) -> None:
    together = ECHO.replace("return batch", "time.sleep(0.3)\n        return [len(batch)] * len(batch)")
    write_handler(server.folder("together"), "import time\n" + together)
    server.load("together").raise_for_status()
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        sizes = [answer.json() for answer in pool.map(lambda n: server.invoke("together", n), range(6))]
    assert (max(sizes) > 1) is expected("several at once"), sizes


def test_what_people_look_at(server: Server, expected: Expected) -> None:
    assert server.http.get("/metrics").status_code == expected("pages")
