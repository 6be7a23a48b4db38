"""Code that hangs, crashes, exits or brings its own packages: only its own callers notice."""

from __future__ import annotations

import concurrent.futures
import time
from pathlib import Path

import pytest

from tests.makers import tiny_bert, wheel
from tests.server import Server, running, write_handler

FINE = """
from container.handler import Handler

class Fine(Handler):
    def predict(self, batch):
        return batch
"""


def misbehaving(when: str, what: str) -> str:
    """A handler that does ``what`` for the input ``when`` and answers any other."""
    imports = "import ctypes, os, re, sys, time, threading\n"
    return imports + FINE.replace("return batch", f"if batch[0] == {when!r}:\n            {what}\n        return batch")


def until(server: Server, name: str, state: str, timeout_s: float = 60) -> dict[str, object]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        described = server.describe(name)
        if described["state"] == state:
            return described
        time.sleep(0.05)
    raise AssertionError(f"{name} is not {state}: {server.describe(name)}\n{server.log()[-2000:]}")


@pytest.fixture
def neighbours(server: Server) -> list[str]:
    """Two models that must not notice: one in the guests' process, one in the engine."""
    if "fine" not in server.names():
        write_handler(server.folder("fine"), FINE)
        tiny_bert(server.folder("bert"))
        for name in ("fine", "bert"):
            server.load(name).raise_for_status()
    return ["fine", "bert"]


def test_a_regex_that_holds_the_interpreter_is_killed_and_its_model_kept_out_with_the_reason(
    server: Server, neighbours: list[str]
) -> None:
    code = misbehaving("hang", "re.match(r'(a+)+$', 'a' * 60 + 'b')")
    write_handler(server.folder("catastrophic"), code, timeout_s=1.0)
    server.load("catastrophic").raise_for_status()
    assert server.invoke("catastrophic", "ok").json() == "ok"
    started = time.monotonic()
    answer = server.invoke("catastrophic", "hang")
    assert (answer.status_code, answer.json()["reason"]) == (504, "model.timeout")
    assert time.monotonic() - started < 5
    described = until(server, "catastrophic", "quarantined")
    assert "did not come back" in str(described["reason"])
    refused = server.invoke("catastrophic", "ok")
    assert (refused.status_code, refused.json()["reason"]) == (503, "model.quarantined")
    assert server.invoke("fine", 1).json() == 1
    assert server.invoke("bert", {"inputs": "a"}).status_code == 200
    assert server.http.get("/ping").status_code == 200
    server.unload("catastrophic").raise_for_status()
    server.load("catastrophic").raise_for_status()
    assert server.invoke("catastrophic", "ok").json() == "ok"
    server.unload("catastrophic").raise_for_status()


@pytest.mark.parametrize("what", ["ctypes.string_at(0)", "os._exit(1)", "os.kill(os.getpid(), 9)", "os.abort()"])
def test_code_that_ends_its_process_is_forgiven_once_and_kept_out_the_second_time(
    server: Server, neighbours: list[str], what: str
) -> None:
    name = f"dies{abs(hash(what)) % 1000}"
    write_handler(server.folder(name), misbehaving("die", what))
    server.load(name).raise_for_status()
    first = server.invoke(name, "die")
    assert first.status_code in (503, 507), first.text
    assert server.invoke(name, "ok").json() == "ok"
    assert server.invoke("fine", 1).json() == 1
    server.invoke(name, "die")
    assert "died 2 times" in str(until(server, name, "quarantined")["reason"])
    assert server.invoke("fine", 1).json() == 1
    server.unload(name).raise_for_status()
    server.load(name).raise_for_status()
    mine = [process for process in server.family() if any("own-" in part for part in process.cmdline())]
    assert len(mine) == 1, "an offender gets a process of its own"
    assert server.invoke(name, "ok").json() == "ok"
    server.unload(name).raise_for_status()


def test_a_slow_guest_delays_no_other_guest_and_no_ping(server: Server, neighbours: list[str]) -> None:
    write_handler(server.folder("sleeps"), misbehaving("slow", "time.sleep(3)"), timeout_s=10)
    server.load("sleeps").raise_for_status()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.invoke, "sleeps", "slow")
        time.sleep(0.3)
        started = time.monotonic()
        assert server.invoke("fine", 2).json() == 2
        assert server.http.get("/ping").status_code == 200
        assert time.monotonic() - started < 2
        assert slow.result().json() == "slow"
    server.unload("sleeps").raise_for_status()


def test_two_models_with_conflicting_requirements_are_both_right_and_their_bytes_are_booked(server: Server) -> None:
    code = "import greeting\n" + FINE.replace("return batch", "return [greeting.VERSION for _ in batch]")
    for version in ("1.0", "2.0"):
        folder = write_handler(server.folder(f"v{version}"), code)
        wheel(folder / "code" / "wheels", version)
        (folder / "code" / "requirements.txt").write_text(f"greeting=={version}\n")
        answer = server.load(f"v{version}")
        assert answer.status_code == 200, answer.text
    assert [server.invoke(f"v{version}", 0).json() for version in ("1.0", "2.0")] == ["1.0", "2.0"]
    assert server.describe("v1.0")["bytes"] > 1 << 20, "the process counts, not only its weights"
    environments = list((server.base / "state" / "environments").glob("*/.complete"))
    assert len(environments) == 2
    for version in ("1.0", "2.0"):
        server.unload(f"v{version}").raise_for_status()
    assert not [process for process in server.family() if any("own-" in part for part in process.cmdline())]


def test_requirements_that_cannot_be_had_fail_the_load_with_pips_words(server: Server) -> None:
    folder = write_handler(server.folder("impossible"), FINE)
    wheel(folder / "code" / "wheels", "1.0")
    (folder / "code" / "requirements.txt").write_text("--no-index\ngreeting==9.9\n")
    answer = server.load("impossible")
    assert (answer.status_code, answer.json()["reason"]) == (500, "model.load_failed")
    assert "greeting==9.9" in answer.json()["message"]


def test_a_model_that_asks_for_it_runs_in_a_process_of_its_own(server: Server) -> None:
    code = "import os\n" + FINE.replace("return batch", "return [os.getpid() for _ in batch]")
    write_handler(server.folder("alone"), code, isolation="own")
    write_handler(server.folder("together"), code)
    for name in ("alone", "together"):
        server.load(name).raise_for_status()
    pids = [server.invoke(name, 0).json() for name in ("alone", "together")]
    assert pids[0] != pids[1] == server.pid_of("guests")
    for name in ("alone", "together"):
        server.unload(name).raise_for_status()


def test_code_that_kills_its_process_while_loading_fails_the_load_with_the_cause(
    server: Server, neighbours: list[str]
) -> None:
    write_handler(server.folder("exits"), "import os\nos._exit(3)\n")
    answer = server.load("exits")
    assert (answer.status_code, answer.json()["reason"]) == (500, "model.load_failed")
    assert "exit status 3" in answer.json()["message"]
    assert server.http.get("/models/exits").status_code == 404
    assert server.invoke("fine", 5).json() == 5


def test_a_hung_engine_is_replaced_and_the_model_it_hung_in_is_kept_out(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        tiny_bert(server.folder("bert"))
        tiny_bert(server.folder("other"), 1)
        (server.folder("bert") / "berth.json").write_text('{"timeout_s": 1.0, "options": {}}')
        for name in ("bert", "other"):
            server.load(name).raise_for_status()
        engine = server.pid_of("engine")
        # Our own handlers do not hang; a frozen engine shows the same to the supervisor: time passes, nobody returns.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            import os
            import signal

            long = {"inputs": ["a b c d e f g h i j k l m n o p q r s t u v w x y z"] * 4000}
            call = pool.submit(server.invoke, "bert", long)
            time.sleep(0.15)
            os.kill(engine, signal.SIGSTOP)
            deadline = time.monotonic() + 60
            while server.pid_of("engine") == engine and time.monotonic() < deadline:
                time.sleep(0.1)
            assert call.result().status_code in (503, 504)
        assert server.pid_of("engine") != engine
        deadline = time.monotonic() + 60
        while server.invoke("other", {"inputs": "a"}).status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert server.invoke("other", {"inputs": "a"}).status_code == 200
        assert until(server, "bert", "quarantined")["reason"]
