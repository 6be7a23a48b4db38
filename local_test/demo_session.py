"""The demo's conversation with the endpoint: four answers, memory before and after an eviction, times."""

from __future__ import annotations

import io
import json
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from PIL import Image

from local_test import demo_checks as checks
from local_test import train_prose
from local_test.processes import Process
from local_test.terminal import heading, say, table, verdict

_PAYLOADS = Path(__file__).parent / "payloads"


@dataclass(slots=True)
class Session:
    """What is running, the times taken, and what was wrong."""

    endpoint_url: str
    endpoint: str
    server_url: str
    place: Path
    processes: dict[str, Process]
    times_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def judge(self, right: bool, text: str) -> None:
        """Say whether an answer was right, and remember if not."""
        verdict(right, text)
        if not right:
            self.wrong.append(text)


def run(session: Session) -> list[str]:
    """Ask everything; returns the sentences that say what was wrong."""
    client = boto3.client(
        "sagemaker-runtime",
        endpoint_url=session.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",
        config=Config(read_timeout=70),  # as AWS advises for calls that may take 60 s
    )
    ask = _Asker(client, session)
    heading("3. Answers, through boto3")
    for model in (_sentences, _digits, _celsius):
        _guarded(model, ask, session)
    before = _memory(session)
    _guarded(_prose, ask, session)
    heading("4. Memory: not all fit, so the least recently used model sank when the writer came")
    _compare(session, before, _memory(session))
    heading("5. The model that sank still has its name, and answers")
    _guarded(_sentences_again, ask, session)
    heading("6. Times in milliseconds")
    _times(session)
    client.close()
    return session.wrong


class _Asker:
    """Invokes through boto3 and notes the time."""

    def __init__(self, client: Any, session: Session) -> None:
        self._client, self._session = client, session

    def ask(self, model: str, when: str, content_type: str, body: bytes) -> Any:
        begin = time.perf_counter()
        answer = self._client.invoke_endpoint(
            EndpointName=self._session.endpoint, TargetModel=f"{model}.tar.gz", ContentType=content_type, Body=body
        )
        said = json.loads(answer["Body"].read())
        self._session.times_ms.setdefault(model, {})[when] = 1000 * (time.perf_counter() - begin)
        return said

    def twice(self, model: str, content_type: str, body: bytes) -> Any:
        """Ask twice and return the second answer; the first call loads the model, the second shows its speed."""
        self.ask(model, "first call", content_type, body)
        return self.ask(model, "second call", content_type, body)


def _guarded(step: Any, ask: _Asker, session: Session) -> None:
    try:
        step(ask, session)
    except (ClientError, BotoCoreError, ValueError) as error:
        session.judge(False, str(error))


def _sentences(ask: _Asker, session: Session) -> None:
    body = json.dumps({"inputs": [checks.SENTENCE, checks.NEAR, checks.FAR]}).encode()
    near, far = checks.near_and_far(ask.twice("sentences", "application/json", body))
    say(f'  "{checks.SENTENCE}"')
    say(f'    {near:.3f}  "{checks.NEAR}"')
    say(f'    {far:.3f}  "{checks.FAR}"')
    session.judge(near > far + 0.3, "sentences: the near sentence is nearer than the far one")


def _digits(ask: _Asker, session: Session) -> None:
    png = (_PAYLOADS / "digit.png").read_bytes()
    labels = checks.best_labels(ask.twice("digits", "image/png", png))
    with Image.open(io.BytesIO(png)) as picture:
        grey = list(picture.convert("L").tobytes())
        lines = checks.drawing(grey, picture.width)
    notes = [f"{label:<6} {score:.3f}" for label, score in labels[:3]]
    for i, line in enumerate(lines):
        say(f"    {line}    {notes[i - 6] if 6 <= i < 6 + len(notes) else ''}".rstrip())
    session.judge(labels[0][0] == checks.DIGIT_NAME, f"digits: the image of a {checks.DIGIT_NAME} is called so")


def _celsius(ask: _Asker, session: Session) -> None:
    answer = ask.twice("celsius", "text/csv", (_PAYLOADS / "celsius.csv").read_bytes())
    say(f"  {', '.join(f'{c} °C' for c in checks.CELSIUS)} = {', '.join(f'{f} °F' for f in answer)}")
    session.judge(answer == list(checks.FAHRENHEIT), "celsius: the archive's own code/inference.py answers rightly")


def _prose(ask: _Asker, session: Session) -> None:
    body = (_PAYLOADS / "prose.json").read_bytes()
    text = checks.written(ask.twice("prose", "application/json", body))
    book = train_prose.TEXT.read_text(encoding="utf-8")
    expected = book[book.index(checks.PROMPT) :][: len(text)]
    say(f"  asked     {checks.PROMPT}")
    say(f"  written   {text}")
    say(f"  the book  {expected}")
    same = checks.agreement(text, book)
    words = len(same.removeprefix(checks.PROMPT).split())
    session.judge(same == text.rstrip("\ufffd") and words >= 10, f"prose: the next {words} words are the book's own")


def _sentences_again(ask: _Asker, session: Session) -> None:
    body = json.dumps({"inputs": [checks.SENTENCE, checks.NEAR, checks.FAR]}).encode()
    near, far = checks.near_and_far(ask.ask("sentences", "after sinking", "application/json", body))
    session.judge(near > far + 0.3, f"sentences: {near:.3f} against {far:.3f}, as before")


def _memory(session: Session) -> dict[str, dict[str, Any]]:
    """Return archive -> what the server says of it, {} for one that it does not know."""
    with urllib.request.urlopen(session.endpoint_url, timeout=10) as page:
        known: dict[str, str] = json.load(page)["archives"]
    return {key: _describe(f"{session.server_url}/models/{name}") for key, name in known.items()}


def _describe(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=10) as page:
            described: dict[str, Any] = json.load(page)
            return described
    except HTTPError as error:
        if error.code != 404:
            raise
        return {}


def _compare(session: Session, before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> None:
    rows = [["archive", "state", "MiB", "before", "after"]]
    for key, now in after.items():
        size = now.get("bytes") or before[key].get("bytes") or 0
        then, tier = (each.get("tier", "not loaded") for each in (before[key], now))
        rows.append([key, now.get("state", "unknown"), f"{size / 2**20:.1f}", then, tier])
    table(rows)
    then, now_at = (each["sentences.tar.gz"].get("tier", "not loaded") for each in (before, after))
    sank = then == "device" and now_at not in ("device", "not loaded")
    session.judge(sank, f"memory: sentences sank from {then} to {now_at}")
    tier = after["prose.tar.gz"].get("tier", "not loaded")
    session.judge(tier == "device", f"memory: prose is on {tier}")


def _times(session: Session) -> None:
    columns = ["first call", "second call", "after sinking"]
    rows = [["model", *columns]]
    for model, times in session.times_ms.items():
        rows.append([model, *(f"{times[c]:.1f}" if c in times else "" for c in columns)])
    table(rows)
    say("  The first call unpacks the archive and loads the model; times are those of the caller, boto3 included.")
