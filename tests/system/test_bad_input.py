"""Each wrong thing a caller or an archive can do: a clear error, and the server as it was."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server import Server, write_handler, write_script

FINE = """
from container.handler import Handler

class Fine(Handler):
    def predict(self, batch):
        return batch
"""


@pytest.fixture(autouse=True)
def the_server_is_unharmed(server: Server) -> Iterator[None]:
    """The guests' process may have been replaced: that is what happens to code that does not come back."""
    if "fine" not in server.names():
        write_handler(server.folder("fine"), FINE)
        server.load("fine").raise_for_status()
    pids = [server.pid_of("engine"), server.pid_of("front")]
    yield
    assert server.http.get("/ping").status_code == 200
    assert server.invoke("fine", [1, 2]).json() == [1, 2]
    assert server.names() == ["fine"]
    assert [server.pid_of("engine"), server.pid_of("front")] == pids


def check_refused(answer: httpx.Response, status: int, reason: str, *words: str) -> None:
    body = answer.json()
    assert (answer.status_code, body["code"], body["reason"]) == (status, status, reason), body
    for word in words:
        assert word in body["message"], body
    assert "Traceback" not in answer.text
    assert 'File "' not in answer.text
    assert "site-packages" not in answer.text


def test_malformed_json_says_where(server: Server) -> None:
    check_refused(server.invoke("fine", b'{"inputs": '), 400, "request.malformed", "JSON")


def test_an_empty_body_is_told_apart_from_a_broken_one(server: Server) -> None:
    check_refused(server.invoke("fine", b""), 400, "request.malformed", "empty")


def test_a_form_is_refused_with_the_curl_option_that_was_forgotten(server: Server) -> None:
    answer = server.invoke("fine", b"{}", content_type="application/x-www-form-urlencoded")
    check_refused(answer, 415, "request.media_type", "-H", "application/json")


def test_an_unknown_type_and_an_impossible_accept(server: Server) -> None:
    check_refused(server.invoke("fine", b"x", content_type="application/x-unheard-of"), 415, "request.media_type")
    check_refused(server.invoke("fine", [1], accept="video/mp4"), 406, "request.not_acceptable")


def test_an_unknown_model_and_an_unknown_path_and_method(server: Server) -> None:
    check_refused(server.invoke("nobody", {}), 404, "model.not_found", "nobody")
    check_refused(server.http.get("/nowhere"), 404, "request.no_route")
    check_refused(server.http.put("/models"), 405, "request.method")


def test_a_body_over_the_limit_is_refused_before_it_is_read(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        head = f"POST /models/fine/invoke HTTP/1.1\r\nHost: x\r\nContent-Length: {26 << 20}\r\n\r\n"
        sock.sendall(head.encode())
        answer = sock.recv(65536)
    assert b" 413 " in answer.split(b"\r\n")[0]
    assert b"request.too_large" in answer


def test_a_caller_that_hangs_up_in_mid_body_leaves_nothing(server: Server) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.sendall(b"POST /models/fine/invoke HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nabc")
    assert "\nberth_requests_in_flight 0.0\n" in server.http.get("/metrics").text


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "JSON"),
        (b"[]", "model_name"),
        (b'{"url": "/x"}', "model_name"),
        (b'{"model_name": 5, "url": "/x"}', "model_name"),
        (b'{"model_name": "x"}', "url"),
    ],
)
def test_a_load_request_that_is_not_one(server: Server, body: bytes, word: str) -> None:
    answer = server.http.post("/models", content=body, headers={"content-type": "application/json"})
    check_refused(answer, 400, "request.malformed", word)


def test_a_name_that_is_not_allowed(server: Server) -> None:
    check_refused(server.load("a b"), 400, "model.name", "letters")
    check_refused(server.load("x" * 257), 400, "model.name")


def test_a_path_outside_the_models_folder(server: Server, tmp_path: Path) -> None:
    write_handler(tmp_path, FINE)
    refused = server.load("outside", tmp_path)
    check_refused(refused, 400, "model.path")
    assert "SAGEMAKER_BASE_DIR" in refused.json()["message"]
    assert str(server.base) not in refused.text, "no folder of the server is anybody's business"
    check_refused(server.load("outside", f"{server.base}/models/../../etc"), 400, "model.path")
    check_refused(server.load("outside", "/proc/self"), 400, "model.path")
    link = server.folder("link")
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path)
    check_refused(server.load("link"), 400, "model.path")


def test_a_folder_that_is_not_there_and_one_that_is_no_model(server: Server) -> None:
    check_refused(server.load("missing"), 404, "model.missing")
    server.folder("empty").mkdir(parents=True)
    check_refused(server.load("empty"), 400, "model.archive")


def test_broken_weights_are_a_broken_archive_and_the_name_is_free_again(server: Server) -> None:
    from tests.makers import tiny_bert

    folder = tiny_bert(server.folder("torn"))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    check_refused(server.load("torn"), 400, "model.archive")
    check_refused(server.load("torn"), 400, "model.archive")
    (folder / "model.safetensors").write_bytes(whole)
    assert server.load("torn").status_code == 200
    server.unload("torn").raise_for_status()


def test_code_that_raises_at_import_at_load_and_at_predict(server: Server) -> None:
    write_handler(server.folder("import_raises"), "raise RuntimeError('no such card')")
    check_refused(server.load("import_raises"), 500, "model.load_failed", "no such card")
    write_script(
        server.folder("load_raises"), "def model_fn(d):\n    raise KeyError('weights')\ndef predict_fn(d, m): ..."
    )
    check_refused(server.load("load_raises"), 500, "model.load_failed", "weights")
    write_handler(server.folder("syntax"), "def broken(:")
    check_refused(server.load("syntax"), 500, "model.load_failed", "SyntaxError")
    write_handler(server.folder("predict_raises"), FINE.replace("return batch", "raise ValueError('not today')"))
    server.load("predict_raises").raise_for_status()
    check_refused(server.invoke("predict_raises", 1), 500, "model.failed", "not today")
    server.unload("predict_raises").raise_for_status()
    lines = [line for line in server.log_lines() if "not today" in line.get("traceback", "")]
    assert len(lines) == 1, lines


@pytest.mark.parametrize(
    ("raises", "status", "reason", "word"),
    [
        ("OSError('no card')", 500, "model.load_failed", "no card"),
        ("SystemExit(1)", 500, "model.load_failed", "SystemExit"),
        ("MemoryError()", 507, "memory.exhausted", "memory"),
    ],
)
def test_a_service_class_whose_initialize_raises_is_not_loaded(
    server: Server, raises: str, status: int, reason: str, word: str
) -> None:
    """multi-model-server swallowed it, and said 200 for a model that could not answer."""
    folder = server.folder(f"initialize_{word.replace(' ', '_')}")
    (folder / "MAR-INF").mkdir(parents=True)
    manifest = {"model": {"modelName": "a", "handler": "service", "serializedFile": ""}}
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    service = (
        f"class Service:\n def initialize(self, context):\n  raise {raises}\n def handle(self, data, context): ...\n"
    )
    (folder / "service.py").write_text(service)
    name = folder.parent.name
    check_refused(server.load(name), status, reason, word)
    assert server.http.get(f"/models/{name}").status_code == 404
    check_refused(server.invoke(name, 1), 404, "model.not_found")


def test_too_few_answers_is_the_models_fault_with_both_numbers(server: Server) -> None:
    write_handler(server.folder("answers_too_few"), FINE.replace("return batch", "return []"))
    server.load("answers_too_few").raise_for_status()
    check_refused(server.invoke("answers_too_few", 1), 500, "model.bad_answer", "0", "1")
    server.unload("answers_too_few").raise_for_status()


def test_an_unknown_key_in_berth_json_names_the_nearest(server: Server) -> None:
    write_handler(server.folder("misspelt"), FINE, timeout=5)
    check_refused(server.load("misspelt"), 400, "model.archive", "timeout_s")


def test_the_manifests_timeout_is_kept_for_the_caller(server: Server) -> None:
    code = "import time\n" + FINE.replace("return batch", "time.sleep(3)\n        return batch")
    write_handler(server.folder("sleeps"), code, timeout_s=0.5)
    server.load("sleeps").raise_for_status()
    answer = server.invoke("sleeps", 1)
    check_refused(answer, 504, "model.timeout", "timeout_s")
    assert answer.elapsed.total_seconds() < 2.5
    assert server.http.get("/ping").status_code == 200
    server.unload("sleeps").raise_for_status()
