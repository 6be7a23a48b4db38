"""What the demo shows of memory: copies of one model in the bytes of one, and more models than there is room for.

Two servers of its own, asked by HTTP: the first keeps equal weights once, the second has that switched off, so that the
same copies are four models of their own, and has room for two of them.
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local_test import demo_checks as checks
from local_test.processes import Process, free_port, memory_bytes, server_environment
from local_test.terminal import Progress, heading, say, table, verdict

COPIES, MODELS, ROOM, ROUNDS = 20, 4, 2, 3
_MIB = 1 << 20
_BODY = json.dumps({"inputs": [checks.SENTENCE, checks.NEAR, checks.FAR]}).encode()


def run(archive: Path, place: Path) -> list[str]:
    """Show both with the embedder in ``archive``; files go under ``place``. Return what was wrong, in sentences.

    Raises NotStarted.
    """
    wrong: list[str] = []

    def judge(right: bool, text: str) -> None:
        verdict(right, text)
        if not right:
            wrong.append(text)

    heading(f"7. {COPIES} copies of the embedder, one copy of its bytes")
    folders = _unpack(archive, place / "memory" / "ml" / "models")
    try:
        size = sum(file.stat().st_size for file in folders[0].glob("*.safetensors"))
        try:
            expected = _copies(place / "memory", folders, size, judge)
            heading(f"8. A limit that holds {ROOM} of {MODELS} models, all {MODELS} answering")
            _more_than_fit(place / "memory", folders[:MODELS], size, expected, judge)
        except (OSError, ValueError) as error:  # what urllib and json raise
            judge(False, f"memory: {error}")
    finally:
        shutil.rmtree(place / "memory", ignore_errors=True)
    return wrong


class _Server:
    """One server: its process, and what is asked of it."""

    def __init__(self, process: Process, url: str) -> None:
        self.process, self._url = process, url

    def load(self, name: str, folder: Path) -> None:
        """POST /models."""
        self._send("/models", json.dumps({"model_name": name, "url": str(folder)}).encode())

    def ask(self, name: str) -> Any:
        """Return the vectors of the three sentences."""
        return self._send(f"/models/{name}/invoke", _BODY)

    def describe(self, name: str) -> dict[str, Any]:
        """GET /models/{name}."""
        described: dict[str, Any] = self._send(f"/models/{name}")
        return described

    def _send(self, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(self._url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@contextmanager
def _serving(place: Path, **settings: str) -> Iterator[_Server]:
    port = free_port()
    environment = server_environment(place, port, **settings)
    process = Process("the server", ["container", "serve"], environment, place / "server.log")
    try:
        process.wait_ready(f"http://127.0.0.1:{port}/ping", within_s=60)
        yield _Server(process, f"http://127.0.0.1:{port}")
    finally:
        process.stop()


def _unpack(archive: Path, folder: Path) -> list[Path]:
    """Return COPIES folders with the files of ``archive``, none of them a link to another."""
    first, *others = folders = [folder / f"copy-{number:02}" for number in range(COPIES)]
    with tarfile.open(archive, "r:gz") as tar:
        tar.extractall(first, filter="data")
    progress = Progress("copies on the disk", COPIES)
    for number, other in enumerate(others, 2):
        shutil.copytree(first, other)
        progress.at(number)
    return folders


def _copies(place: Path, folders: list[Path], size: int, judge: Callable[[bool, str], None]) -> Any:
    """Load every folder as a model of its own; return the answer of the first."""
    with _serving(place, BERTH_MEMORY_LIMIT=str(3 * size)) as server:
        answers, memory = [], []
        progress = Progress("models loaded and asked", COPIES)
        for number, folder in enumerate(folders, 1):
            server.load(folder.name, folder)
            answers.append(server.ask(folder.name))
            progress.at(number)
            if number in (1, COPIES):
                described = _settled(server, folders[:number], size)
                memory.append(memory_bytes(server.process.pid))
    one, all_ = memory
    shown = described[-1]
    say(f"  GET /models/{folders[-1].name}:  bytes {shown['bytes']:,}  sharedBytes {shown['sharedBytes']:,}")
    rows = [["", "1 model", f"{COPIES} models"]]
    rows.append(["weights on the disk, MiB", f"{size / _MIB:.0f}", f"{COPIES * size / _MIB:,.0f}"])
    if one is not None and all_ is not None:
        rows.append(["memory of all processes, MiB", f"{one / _MIB:.0f}", f"{all_ / _MIB:.0f}"])
    table(rows)
    same = sum(checks.same_vectors(answers[0], answer) for answer in answers)
    judge(same == COPIES, f"copies: {same} of {COPIES} answer, and say the same")
    lie = sum(_lies_in_one(each, size) for each in described)
    judge(lie == COPIES, f"copies: {lie} of {COPIES} are up and lie in one copy of the weights")
    if one is None or all_ is None:
        say(f"  this system ({sys.platform}) does not tell the memory of processes")
    else:
        more = f"{(all_ - one) / _MIB:.0f} MiB more than one; copies would take {(COPIES - 1) * size / _MIB:,.0f}"
        judge(checks.kept_once(one, all_, size), f"copies: {COPIES} take {more}")
    return answers[0]


def _settled(server: _Server, folders: list[Path], size: int) -> list[Any]:
    """Return what GET /models/{name} says of each once they are compared, which runs aside; 5 s at most."""
    deadline = time.monotonic() + 5
    while True:
        described = [server.describe(each.name) for each in folders]
        if len(folders) == 1 or all(_lies_in_one(each, size) for each in described) or time.monotonic() > deadline:
            return described
        time.sleep(0.05)


def _lies_in_one(described: Any, size: int) -> bool:
    """Say whether a model is up and its weights are those of others, too."""
    return bool(described["sharedBytes"] >= 0.99 * size and described["tier"] == "device")


def _more_than_fit(
    place: Path, folders: list[Path], size: int, expected: Any, judge: Callable[[bool, str], None]
) -> None:
    """Ask four models in turn, again and again, where two have room."""
    limit = ROOM * size + size // 2
    say(f"  BERTH_SHARING=off makes them {MODELS} models of their own; BERTH_MEMORY_LIMIT={limit} holds {ROOM}")
    with _serving(place, BERTH_MEMORY_LIMIT=str(limit), BERTH_SHARING="off") as server:
        for folder in folders:
            server.load(folder.name, folder)
        right, most, rows = 0, 0, [["model", *(f"call {number}, ms" for number in range(1, ROUNDS + 1)), "at the end"]]
        cells: dict[str, list[str]] = {folder.name: [folder.name] for folder in folders}
        for _ in range(ROUNDS):
            for name in cells:
                begin = time.perf_counter()
                right += checks.same_vectors(expected, server.ask(name))
                cells[name].append(f"{1000 * (time.perf_counter() - begin):.0f}")
                tiers = {each: server.describe(each)["tier"] for each in cells}
                most = max(most, list(tiers.values()).count("device"))
    table([*rows, *([*row, tiers[name]] for name, row in cells.items())])
    calls = ROUNDS * MODELS
    judge(right == calls, f"limit: {right} of {calls} calls answered as before, and nobody unloaded anything")
    judge(most == ROOM, f"limit: at most {most} of {MODELS} were up at once; the others sank and kept their names")
