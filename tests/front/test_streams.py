"""Answers in pieces: chunked out as they come, a status while there is still time for one, an honest end."""

from __future__ import annotations

import socket

import httpx
import pytest

from container.wire import messages as m

from .conftest import Front
from .double import Engine
from .test_front_process import request, until


def raw_answer(front: Front, model: str, body: bytes) -> bytes:
    """All that comes until the connection ends; the request asks for no end itself."""
    with front.connect() as stream:
        stream.sendall(request(f"/models/{model}/invoke", body))
        got = b""
        while data := stream.recv(1 << 16):
            got += data
            if got.endswith(b"\r\n0\r\n\r\n"):
                return got
        return got


def test_pieces_go_out_in_chunks_and_the_connection_lives_on(engine: Engine, client: httpx.Client) -> None:
    for _ in range(2):
        with client.stream("POST", "/models/tells_word_by_word/invoke", content=b"a b c") as answer:
            assert answer.status_code == 200
            assert answer.headers["transfer-encoding"] == "chunked"
            assert "content-length" not in answer.headers
            assert answer.headers["content-type"] == "text/event-stream"
            assert answer.headers["cache-control"] == "no-cache"
            assert answer.headers["x-fine"] == "yes"
            assert answer.headers["x-amzn-sagemaker-inference-id"]
            assert answer.read() == b"a b c end"
    assert all(each.stream for each in engine.seen if isinstance(each, m.Invoke))


def test_the_first_piece_goes_out_before_the_last_is_there(engine: Engine, client: httpx.Client) -> None:
    with client.stream("POST", "/models/never_ends/invoke", content=b"once") as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"once "
        engine.release(b"upon")
        assert b"".join(pieces) == b"upon"


def test_an_answer_that_breaks_off_ends_without_the_last_chunk(front: Front, engine: Engine) -> None:
    got = raw_answer(front, "breaks_off", b"a b")
    assert got.startswith(b"HTTP/1.1 200 ")
    assert b"a " in got
    assert not got.endswith(b"0\r\n\r\n")
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.post(f"{front.url}/models/breaks_off/invoke", content=b"a b", timeout=60)


def test_what_fails_before_its_first_piece_has_its_status(engine: Engine, client: httpx.Client) -> None:
    answer = client.post("/models/breaks_off/invoke", content=b"")
    assert (answer.status_code, answer.json()["reason"]) == (500, "model.failed")
    assert client.post("/models/tells_word_by_word/invoke", content=b"").content == b"end"


def test_hanging_up_in_mid_answer_cancels_the_request_to_the_engine(front: Front, engine: Engine) -> None:
    with front.connect() as stream:
        stream.sendall(request("/models/never_ends/invoke", b"once"))
        got = b""
        while b"once" not in got:
            got += stream.recv(1 << 16)
        stream.shutdown(socket.SHUT_RDWR)
    until(lambda: len(engine.seen) == 2)
    invoked, cancelled = engine.seen
    assert cancelled == m.Cancel(invoked.id)
