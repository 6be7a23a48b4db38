"""Requests that two servers would read differently, written byte by byte: refused, or read in one way only."""

from __future__ import annotations

import re
import socket

import pytest

from tests.server import Server
from tests.strangers.clean import assert_clean

HIDDEN = b"DELETE /models/fine HTTP/1.1\r\nHost: x\r\n\r\n"
LINE = b"POST /models/fine/invoke HTTP/1.1\r\nHost: x\r\n"
LAST = LINE + b"Connection: close\r\n"


def talk(server: Server, said: bytes) -> list[tuple[int, bytes]]:
    """Send, listen until the server hangs up; return every answer's status and the whole text behind it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
        heard = b""
        try:
            sock.sendall(said)
            while data := sock.recv(65536):
                heard += data
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert_clean(heard.decode("latin-1"), server.base / "state", said.decode("latin-1"))
    starts = [match.start() for match in re.finditer(rb"HTTP/1\.[01] \d{3} ", heard)]
    return [(int(heard[at + 9 : at + 12]), heard[at:]) for at in starts]


SMUGGLED = {
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + HIDDEN,
    "two lengths that differ": b"Content-Length: 2\r\nContent-Length: 60\r\n\r\n[]" + HIDDEN,
    "two lengths in one line": b"Content-Length: 2, 60\r\n\r\n[]" + HIDDEN,
    "a length with a sign": b"Content-Length: +2\r\n\r\n[]" + HIDDEN,
    "a negative length": b"Content-Length: -2\r\n\r\n[]" + HIDDEN,
    "a length in hex": b"Content-Length: 0x2\r\n\r\n[]" + HIDDEN,
    "a length with an underscore": b"Content-Length: 1_0\r\n\r\n[]" + HIDDEN,
    "a length beyond 64 bits": b"Content-Length: 99999999999999999999999\r\n\r\n[]" + HIDDEN,
    "a length in other digits": "Content-Length: \u0662\r\n\r\n[]".encode() + HIDDEN,
    "a length of nothing": b"Content-Length: \r\n\r\n[]" + HIDDEN,
    "a space before the colon": b"Content-Length : 2\r\nContent-Length: 60\r\n\r\n[]" + HIDDEN,
    "a folded header": b"X-A: b\r\n Content-Length: 60\r\nContent-Length: 2\r\n\r\n[]" + HIDDEN,
    "a coding that is not chunked": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked not last": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked behind a tab": b"Transfer-Encoding:\tchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked with a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a chunk size with a sign": b"Transfer-Encoding: chunked\r\n\r\n+2\r\n[]\r\n0\r\n\r\n" + HIDDEN,
    "a chunk size with an underscore": b"Transfer-Encoding: chunked\r\n\r\n0_2\r\n[]\r\n0\r\n\r\n" + HIDDEN,
    "a chunk size in hex with its prefix": b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n[]\r\n0\r\n\r\n" + HIDDEN,
    "a chunk that does not end": b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]XX0\r\n\r\n" + HIDDEN,
    "a chunk size without end": b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 100_000,
    "bare line feeds": b"X: y\nContent-Length: 60\r\nContent-Length: 2\r\n\r\n[]" + HIDDEN,
    "a bare carriage return": b"X: y\rContent-Length: 60\r\nContent-Length: 2\r\n\r\n[]" + HIDDEN,
}


@pytest.mark.parametrize("headers", SMUGGLED.values(), ids=SMUGGLED.keys())
def test_no_second_request_hides_in_the_first(server: Server, headers: bytes) -> None:
    answers = talk(server, LINE + headers)
    assert [status for status, _ in answers if status != 100] in ([400], [501], [413], [431]), answers
    assert "fine" in server.names()


def test_a_request_behind_a_proper_one_is_a_request_of_its_own(server: Server) -> None:
    two = LINE + b"Content-Length: 3\r\n\r\n[1]" + LAST + b"Transfer-Encoding: chunked\r\n\r\n3\r\n[2]\r\n0\r\n\r\n"
    assert [(status, text.rpartition(b"\r\n")[2]) for status, text in talk(server, two)][-1] == (200, b"[2]")


ODD = {
    "nul in a header": (b"GET /ping HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n", 400),
    "nul in a header's name": (b"GET /ping HTTP/1.1\r\nHost: x\r\nX\0: a\r\n\r\n", 400),
    "nul in the path": (b"GET /models/a\0b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "no name": (b"GET /ping HTTP/1.1\r\nHost: x\r\n: a\r\n\r\n", 400),
    "one header of 64 KB": (b"GET /ping HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 65536 + b"\r\n\r\n", 431),
    "ten thousand headers": (b"GET /ping HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", 431),
    "headers without end": (b"GET /ping HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"b" * 2_000_000, 431),
    "a path of 64 KB": (b"GET /" + b"a" * 65536 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "another version": (b"GET /ping HTTP/9.9\r\nHost: x\r\n\r\n", 400),
    "http/2 by prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "no version": (b"GET /ping\r\n\r\n", 400),
    "a method of 64 KB": (b"G" * 65536 + b" /ping HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100 + b"\r\n\r\n", 400),
}


@pytest.mark.parametrize(("said", "status"), ODD.values(), ids=ODD.keys())
def test_what_is_no_request_is_refused_in_our_shape(server: Server, said: bytes, status: int) -> None:
    answers = talk(server, said)
    assert [got for got, _ in answers] in ([status], [400], [431], [414]), answers
    assert b'"reason":"request.malformed"' in answers[0][1]


def test_an_upgrade_is_not_taken(server: Server) -> None:
    asked = b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    answers = talk(server, asked + b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n")
    assert [status for status, _ in answers] == [200]
    socket_key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    asked = b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n" + socket_key
    assert all(status != 101 for status, _ in talk(server, asked))


IDS = [b"a\rX-Evil: 1", b"a\nX-Evil: 1", b"a\0b", b"a\x80\xff", b"a\x0bb", b"a\x7fb", b"a" * 5000, b'"><script>']


@pytest.mark.parametrize("name", [b"X-Amzn-SageMaker-Inference-Id", b"X-Amzn-SageMaker-Custom-Attributes"])
@pytest.mark.parametrize("value", IDS)
def test_what_a_caller_puts_into_headers_cannot_split_the_answer(server: Server, name: bytes, value: bytes) -> None:
    answers = talk(server, LAST + name + b": " + value + b"\r\nContent-Length: 3\r\n\r\n[1]")
    head = answers[0][1].partition(b"\r\n\r\n")[0]
    assert [status for status, _ in answers] in ([200], [400]), answers
    assert not re.search(rb"^x-evil", head, re.MULTILINE | re.IGNORECASE), head
    assert b"\0" not in head
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", head), head
