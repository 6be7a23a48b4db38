"""The multi-model contract over the real server: contract.md section 2 with the column "recommended" of section 6."""

from __future__ import annotations

import concurrent.futures
import io
import time
from pathlib import Path

import numpy as np
import pytest

from tests.makers import tiny_bert
from tests.server import Server, running, write_handler, write_script

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


def test_a_server_without_models_is_healthy_and_lists_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert server.http.get("/ping").status_code == 200
        assert server.http.get("/models").json() == {"models": []}
        assert server.http.get("/models/nobody").status_code == 404
        assert server.unload("nobody").status_code == 404
        assert server.invoke("nobody", {}).status_code == 404


def test_load_invoke_list_describe_unload_of_each_kind_in_order(server: Server) -> None:
    tiny_bert(server.folder("bert"))
    write_script(server.folder("script"), SCRIPT, utils="NAME = 'here'", lazy="NAME = 'late'")
    write_handler(server.folder("echo"), ECHO)
    for name in ("bert", "script", "echo"):
        answer = server.load(name)
        assert (answer.status_code, answer.json()) == (200, {"status": "Workers scaled"}), server.log()
        again = server.load(name)
        assert (again.status_code, again.json()["reason"]) == (409, "model.exists")
    assert server.names() == ["bert", "echo", "script"]
    vectors = server.invoke("bert", {"inputs": ["a b c", "d"]}).raise_for_status().json()
    assert np.asarray(vectors).shape == (2, 32)
    assert server.invoke("script", [1]).json() == {"model": "here", "lazy": "late", "got": [1]}
    assert server.invoke("echo", {"x": [1.5, None]}).json() == {"x": [1.5, None]}
    described = server.describe("bert")
    assert described["modelName"] == "bert"
    assert described["modelUrl"] == str(server.folder("bert"))
    assert (described["state"], described["tier"]) == ("ready", "device")
    assert described["bytes"] >= (server.folder("bert") / "model.safetensors").stat().st_size * 0.9
    for name in ("bert", "script", "echo"):
        gone = server.unload(name)
        assert gone.status_code == 200
        assert gone.json()["status"] == f'Model "{name}" unregistered'
        assert server.invoke(name, {}).status_code == 404
        assert server.unload(name).status_code == 404
    assert server.names() == []


def test_listing_is_paged_and_a_foreign_token_is_refused(server: Server) -> None:
    names = [f"page{number}" for number in range(5)]
    for name in names:
        write_handler(server.folder(name), ECHO)
        server.load(name).raise_for_status()
    first = server.http.get("/models", params={"limit": 2}).json()
    assert [model["modelName"] for model in first["models"]] == ["page0", "page1"]
    server.unload("page0")
    second = server.http.get("/models", params={"limit": 3, "next_page_token": first["nextPageToken"]}).json()
    assert [model["modelName"] for model in second["models"]] == ["page2", "page3", "page4"]
    assert "nextPageToken" not in second
    for params in ({"next_page_token": "zz"}, {"limit": "0"}, {"limit": "x"}, {"limit": "101"}):
        refused = server.http.get("/models", params=params)
        assert (refused.status_code, refused.json()["reason"]) == (400, "request.page_token"), params
    for name in names[1:]:
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


def test_two_archives_with_the_same_module_names_each_run_their_own_code_from_many_threads(server: Server) -> None:
    for name in ("left", "right"):
        write_script(server.folder(name), SCRIPT, utils=f"NAME = '{name}'", lazy=f"NAME = 'late {name}'")
        server.load(name).raise_for_status()

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


def test_a_second_load_waits_for_the_first_and_a_call_meanwhile_waits_for_it_too(server: Server) -> None:
    slow = "import time\n" + ECHO + "\n    def load(self, model_dir, context):\n        time.sleep(1.5)\n"
    write_handler(server.folder("slow"), slow)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        first = pool.submit(server.load, "slow")
        time.sleep(0.5)
        second = pool.submit(server.load, "slow")
        call = pool.submit(server.invoke, "slow", [7])
        assert server.describe("slow")["state"] == "loading"
        assert "slow" not in server.names()
        assert first.result().status_code == 200
        assert second.result().status_code == 409
        assert call.result().json() == [7]
    server.unload("slow")


def test_unload_lets_requests_in_flight_finish_and_refuses_new_ones(server: Server) -> None:
    slow = "import time\n" + ECHO.replace("return batch", "time.sleep(1.0)\n        return batch")
    write_handler(server.folder("lingers"), slow)
    server.load("lingers").raise_for_status()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        call = pool.submit(server.invoke, "lingers", [1])
        time.sleep(0.4)
        gone = pool.submit(server.unload, "lingers")
        time.sleep(0.2)
        assert server.invoke("lingers", [2]).status_code == 404
        assert call.result().json() == [1]
        assert gone.result().status_code == 200
