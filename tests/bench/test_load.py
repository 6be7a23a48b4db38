import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from bench.load import Call, Generator, Spec


@contextmanager
def answering(answer: Callable[[bytes], bytes | None]) -> Iterator[int]:
    """A loopback server that hands each request to ``answer``; None hangs up. Yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def talk(sock: socket.socket) -> None:
        with sock:
            buffer = b""
            while not stop.is_set():
                try:
                    data = sock.recv(65536)
                except TimeoutError:
                    continue
                except OSError:
                    return
                if not data:
                    return
                buffer += data
                while (whole := _request(buffer)) is not None:
                    buffer = buffer[len(whole) :]
                    reply = answer(whole)
                    if reply is None:
                        return
                    sock.sendall(reply)

    def accept() -> None:
        while not stop.is_set():
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            sock.settimeout(0.05)
            threads.append(threading.Thread(target=talk, args=(sock,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stop.set()
        acceptor.join()
        for thread in threads:
            thread.join()
        listener.close()


def _request(buffer: bytes) -> bytes | None:
    head, found, rest = buffer.partition(b"\r\n\r\n")
    if not found:
        return None
    length = next((int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")), 0)
    return buffer[: len(head) + 4 + length] if len(rest) >= length else None


def drive(port: int, calls: list[Call], connections: int = 2, **more: float) -> object:
    return Generator(Spec(port, calls, connections, seconds=0.2, warmup_s=0.0, **more)).run()


def test_every_answer_is_counted_once_and_calls_go_out_in_turn():
    seen: list[bytes] = []

    def echo(request: bytes) -> bytes:
        body = request.partition(b"\r\n\r\n")[2]
        seen.append(body)
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    with answering(echo) as port:
        outcome = drive(port, [Call.post("/x", b"one"), Call.post("/x", b"three")], connections=1)

    assert outcome.errors == 0
    assert outcome.answered == len(seen) > 10
    assert outcome.statuses == {"200": len(seen)}
    assert seen[:4] == [b"one", b"three", b"one", b"three"]
    assert outcome.latency.p50_ms <= outcome.latency.p99_ms <= outcome.latency.max_ms


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: 1\r\ncontent-length: 3\r\nY: 2\r\n\r\nabc",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
    ids=["in-chunks", "lower-case-length-in-the-middle", "without-a-body"],
)
def test_an_answer_ends_where_its_framing_says(answer):
    with answering(lambda _: answer) as port:
        outcome = drive(port, [Call.post("/x", b"{}")])

    assert outcome.errors == 0
    assert outcome.answered > 10


def test_an_answer_in_two_pieces_is_one_answer():
    body = b"x" * 3_000_000
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    with answering(lambda _: whole) as port:
        outcome = drive(port, [Call.post("/x", b"{}")], connections=1)

    assert outcome.errors == 0
    assert outcome.answered > 1


def test_refusals_and_hang_ups_are_errors_and_never_throughput():
    replies = iter([b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nfull", None])
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    with answering(lambda _: next(replies, good)) as port:
        outcome = drive(port, [Call.post("/x", b"{}")], connections=1)

    assert outcome.errors == 2
    assert outcome.first_error.startswith("HTTP/1.1 503 Busy")
    assert outcome.statuses["503"] == 1
    assert outcome.latency.count <= outcome.statuses["200"]


def test_pings_are_timed_apart_from_the_load():
    paths: list[bytes] = []

    def answer(request: bytes) -> bytes:
        paths.append(request.split(b" ")[1])
        return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    with answering(answer) as port:
        outcome = drive(port, [Call.post("/x", b"{}")], ping_every_s=0.02)

    assert 2 <= outcome.ping.count == paths.count(b"/ping") <= 11
    assert outcome.answered == paths.count(b"/x")


def test_a_port_where_nothing_listens_is_an_error_not_a_figure():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OSError):
        drive(port, [Call.post("/x", b"{}")])
