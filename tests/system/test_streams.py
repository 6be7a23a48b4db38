"""Answers in pieces over the whole road: from the engine's own handler, and from authors' code in its child."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx

from tests.handlers.models import gpt2
from tests.server import Server, write_handler

TELLER = """
import time
from container.handler import Handler, Parts
from container.payload import Payload

class TellsSlowly(Handler):
    def steps(self, batch):
        try:
            for number in range(batch[0]["words"]):
                time.sleep(batch[0].get("pause_s", 0))
                if number == batch[0].get("fail_at"):
                    raise RuntimeError("lost the thread")
                yield Parts({0: Payload(b"word ", "text/plain")})
            yield [Payload(b"end", "text/plain")]
        finally:
            print("stopped telling")
"""


def pieces(answer: httpx.Response) -> list[bytes]:
    return list(answer.iter_raw())


def streamed(server: Server, name: str, body: Any, **headers: str) -> Any:
    return server.http.stream("POST", f"/models/{name}/invoke", json=body, headers=headers)


def test_generated_text_comes_while_it_grows_and_is_the_same_as_without_a_stream(server: Server) -> None:
    gpt2(server.folder("gpt2"))
    server.load("gpt2").raise_for_status()
    ask = {"inputs": "the ship", "parameters": {"max_new_tokens": 40}}
    (whole,) = server.invoke("gpt2", ask).raise_for_status().json()
    with streamed(server, "gpt2", {**ask, "stream": True}) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        events = [json.loads(line.removeprefix("data:")) for line in answer.iter_lines() if line]
    assert len(events) > 5
    assert ask["inputs"] + "".join(event["token"]["text"] for event in events) == whole["generated_text"]
    assert events[-1]["generated_text"] == whole["generated_text"]
    refused = server.invoke("gpt2", {"inputs": "a", "stream": True, "parameters": {"max_new_tokens": 999}})
    assert (refused.status_code, refused.json()["reason"]) == (400, "request.input")


def test_authors_code_answers_in_pieces_too_and_breaks_off_honestly(server: Server) -> None:
    write_handler(server.folder("teller"), TELLER)
    server.load("teller").raise_for_status()
    with streamed(server, "teller", {"words": 3, "pause_s": 0.05}) as answer:
        assert answer.headers["transfer-encoding"] == "chunked"
        assert b"".join(pieces(answer)) == b"word word word end"
    broke = None
    got = b""
    try:
        with streamed(server, "teller", {"words": 9, "fail_at": 2, "pause_s": 0.05}) as answer:
            for piece in answer.iter_raw():
                got += piece
    except httpx.RemoteProtocolError as error:
        broke = error
    assert broke is not None and got == b"word word "
    failed = server.invoke("teller", {"words": 9, "fail_at": 0})
    assert (failed.status_code, failed.json()["reason"]) == (500, "model.failed")
    assert server.http.get("/ping").status_code == 200


def test_a_caller_that_hangs_up_stops_the_telling(server: Server) -> None:
    if "teller" not in server.names():
        write_handler(server.folder("teller"), TELLER)
        server.load("teller").raise_for_status()
    before = server.log().count("stopped telling")
    started = time.monotonic()
    with streamed(server, "teller", {"words": 600, "pause_s": 0.05}) as answer:
        next(answer.iter_raw())
    while server.log().count("stopped telling") == before:
        assert time.monotonic() - started < 20, "it tells on for nobody"
        time.sleep(0.02)
    assert server.unload("teller").status_code == 200


def test_a_stream_may_take_longer_than_the_models_timeout_as_long_as_it_goes_on(server: Server) -> None:
    write_handler(server.folder("slow"), TELLER, timeout_s=1.0)
    server.load("slow").raise_for_status()
    with streamed(server, "slow", {"words": 8, "pause_s": 0.3}) as answer:
        assert b"".join(pieces(answer)) == b"word " * 8 + b"end"
    assert server.invoke("slow", {"words": 1}).status_code == 200, "it was not taken for hung"
    server.unload("slow").raise_for_status()
