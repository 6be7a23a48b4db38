"""HTTP to one container, as the platform speaks it: the four verbs on models, ping and invoke."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError, TimeoutError

from local_test import aws


@dataclass(frozen=True, slots=True)
class Limits:
    """The platform's patience, in seconds unless named otherwise. Sources: the developer guide's hosting pages."""

    connect_s: float = 0.25
    invoke_s: float = 60.0
    stream_s: float = 480.0
    load_s: float = 360.0
    ping_s: float = 2.0
    ping_every_s: float = 5.0
    ping_failures: int = 3
    startup_s: float = 480.0
    body_bytes: int = 25 << 20


@dataclass(frozen=True, slots=True)
class Call:
    """One invocation: what of it reaches the container."""

    body: bytes
    headers: dict[str, str]
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the container answered."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class NoAnswer(Exception):
    """The container gave no HTTP answer; the text is written for the caller."""


class Container:
    """One container, by its address. Safe to use from several threads; connections are kept alive."""

    def __init__(self, url: str, connect_s: float = 0.25) -> None:
        self.url = url.rstrip("/")
        self._connect_s = connect_s
        self._pool = urllib3.connectionpool.connection_from_url(self.url, maxsize=64, retries=False)

    def ping(self, within_s: float) -> float:
        """Return the seconds /ping took. Raises NoAnswer, also for another status than 200."""
        begin = time.monotonic()
        answer = self._send("GET", "/ping", within_s)
        if answer.status != 200:
            raise NoAnswer(f"/ping answered {answer.status}")
        return time.monotonic() - begin

    def models(self, within_s: float) -> list[str]:
        """Return the names of all loaded models, page after page. Raises NoAnswer, also for another status."""
        names: list[str] = []
        path = "/models"
        while True:
            answer = self._send("GET", path, within_s)
            if answer.status != 200:
                raise NoAnswer(f"GET /models answered {answer.status}")
            page = _object(answer.body)
            names += [str(model["modelName"]) for model in page.get("models", ())]
            token = page.get("nextPageToken")
            if not token:
                return names
            path = f"/models?next_page_token={token}"

    def load(self, name: str, url: str, key: str, within_s: float) -> Answer:
        """Ask for a model. Raises NoAnswer."""
        body = json.dumps({"model_name": name, "url": url}).encode()
        headers = {"Content-Type": "application/json", "X-Amzn-SageMaker-Target-Model": key}
        return self._send("POST", "/models", within_s, body, headers)

    def unload(self, name: str, within_s: float) -> Answer:
        """Ask for a model to go. Raises NoAnswer."""
        return self._send("DELETE", f"/models/{name}", within_s)

    def invoke(self, name: str | None, call: Call, within_s: float) -> Answer:
        """Invoke a model; ``name`` None: the only one. Raises NoAnswer."""
        return self._send("POST", _invoke_path(name), within_s, call.body, call.headers)

    def stream(self, name: str | None, call: Call, within_s: float) -> tuple[Answer, Iterator[bytes]]:
        """Invoke a model and return its answer without a body, and the body as it arrives.

        Raises NoAnswer, and so does the iterator when the answer breaks off.
        """
        with _said(within_s):
            answer = self._open("POST", _invoke_path(name), within_s, call.body, call.headers, whole=False)
        return Answer(answer.status, b"", answer.headers), self._pieces(answer, within_s)

    def memory(self, within_s: float) -> dict[str, int]:
        """Return the container's own figures of model memory by kind, {} if it tells none. Raises NoAnswer."""
        text = self._send("GET", "/metrics", within_s).body.decode(errors="replace")
        found = re.findall(r'^berth_memory_bytes\{[^}]*kind="(\w+)"[^}]*\} (\S+)$', text, re.MULTILINE)
        return {kind: int(float(figure)) for kind, figure in found}

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    @staticmethod
    def _pieces(answer: urllib3.BaseHTTPResponse, within_s: float) -> Iterator[bytes]:
        with _said(within_s):
            try:
                while piece := answer.read1(65536):
                    yield piece
            finally:
                answer.close()

    def _send(
        self, verb: str, path: str, within_s: float, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        with _said(within_s):
            answer = self._open(verb, path, within_s, body, headers or {}, whole=True)
            return Answer(answer.status, answer.data, answer.headers)

    def _open(
        self, verb: str, path: str, within_s: float, body: bytes, headers: Mapping[str, str], whole: bool
    ) -> urllib3.BaseHTTPResponse:
        patience = urllib3.Timeout(connect=self._connect_s, read=max(within_s, 0.001))
        return self._pool.urlopen(
            verb,
            path,
            body=body or None,
            headers=dict(headers),
            timeout=patience,
            redirect=False,
            preload_content=whole,
            decode_content=False,
        )


@contextmanager
def _said(within_s: float) -> Iterator[None]:
    """Turn urllib3's errors into NoAnswer."""
    try:
        yield
    except TimeoutError as error:
        raise NoAnswer(aws.TIMED_OUT) from error
    except (HTTPError, OSError) as error:
        raise NoAnswer(f"the connection to the container failed: {error}") from error


def _invoke_path(name: str | None) -> str:
    return "/invocations" if name is None else f"/models/{name}/invoke"


def _object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in ``body``. Raises NoAnswer if it is not one with a list of named models."""
    try:
        page = json.loads(body)
        if all("modelName" in model for model in page.get("models", ())):
            return dict(page)
    except (ValueError, TypeError, AttributeError) as error:
        raise NoAnswer(f"GET /models answered no JSON object: {error}") from error
    raise NoAnswer("GET /models lists a model without modelName")
