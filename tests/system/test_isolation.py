"""Code that hangs, crashes, exits or brings its own packages: only its own callers notice."""

from __future__ import annotations

import concurrent.futures
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.makers import tiny_bert, wheel
from tests.server import Server, living, running, write_handler, write_script

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


@pytest.mark.parametrize(
    ("what", "status", "reason"),
    [
        ("ctypes.string_at(0)", 503, "server.restarting"),
        ("os._exit(1)", 503, "server.restarting"),
        ("os.abort()", 503, "server.restarting"),
        ("os.kill(os.getpid(), 9)", 507, "memory.exhausted"),  # as the kernel does it when memory is short
        ("os._exit(137)", 507, "memory.exhausted"),  # as a shell tells of that
    ],
)
def test_code_that_ends_its_process_is_forgiven_once_and_kept_out_the_second_time(
    server: Server, neighbours: list[str], what: str, status: int, reason: str
) -> None:
    name = f"dies{abs(hash(what)) % 1000}"
    write_handler(server.folder(name), misbehaving("die", what))
    server.load(name).raise_for_status()
    first = server.invoke(name, "die")
    assert (first.status_code, first.json()["reason"]) == (status, reason), first.text
    assert not server.describe(name).get("reason")
    assert server.invoke(name, "ok").json() == "ok"
    assert server.invoke("fine", 1).json() == 1
    server.invoke(name, "die")
    assert "died 2 times" in str(until(server, name, "quarantined")["reason"])
    assert server.invoke("fine", 1).json() == 1
    server.unload(name).raise_for_status()
    server.load(name).raise_for_status()
    mine = living(server.family(), "own-")
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
    assert not living(server.family(), "own-")


def test_requirements_that_cannot_be_had_fail_the_load_with_pips_words(server: Server) -> None:
    folder = write_handler(server.folder("impossible"), FINE)
    wheel(folder / "code" / "wheels", "1.0")
    (folder / "code" / "requirements.txt").write_text("--no-index\ngreeting==9.9\n")
    answer = server.load("impossible")
    assert (answer.status_code, answer.json()["reason"]) == (500, "model.load_failed")
    assert "greeting==9.9" in answer.json()["message"]
    (folder / "code" / "requirements.txt").write_text("this is no requirement\n")
    answer = server.load("impossible")
    assert (answer.status_code, answer.json()["reason"]) == (500, "model.load_failed")
    assert "line 1 of code/requirements.txt" in answer.json()["message"]
    assert str(server.base) not in answer.text


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


ENDS_LATER = """
import os, threading
from container.handler import Handler

class EndsLater(Handler):
    def predict(self, batch):
        if batch == ["later"]:
            threading.Timer(0.1, os._exit, (1,)).start()
        return batch
"""


def ends_later(server: Server, name: str) -> bool:
    """Ask for an answer whose process ends soon after it; say whether it was given, and wait for that end."""
    pids = {process.pid for process in server.family()}
    if server.invoke(name, "later").status_code != 200:
        return False
    deadline = time.monotonic() + 10
    while pids <= {process.pid for process in server.family()} and time.monotonic() < deadline:
        time.sleep(0.02)
    return True


def test_deaths_that_nobody_is_named_for_have_a_budget_and_the_guilty_one_is_found(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        write_handler(server.folder("later"), ENDS_LATER)
        write_handler(server.folder("fine"), FINE)
        for name in ("later", "fine"):
            server.load(name).raise_for_status()
        answered = 0
        while ends_later(server, "later"):
            answered += 1
            assert server.invoke("fine", answered).json() == answered
            assert answered < 20
        assert answered == 8, "four times among others, four times by itself"
        described = until(server, "later", "quarantined")
        assert "died 4 times between its requests, the last time exit status 1" in str(described["reason"])
        refused = server.invoke("later", "ok")
        assert (refused.status_code, refused.json()["reason"]) == (503, "model.quarantined")
        assert "died 4 times" in refused.json()["message"]
        assert server.invoke("fine", 5).json() == 5
        assert server.names() == ["fine"]


SAME = """
import json

def model_fn(model_dir):
    return {"factor": 3}

def input_fn(body, content_type):
    return json.loads(body)

def predict_fn(data, model):
    if data == "raise":
        raise ValueError("no")
    return {"out": [model["factor"] * each for each in data], "module": __name__.rpartition(".")[2]}

def output_fn(prediction, accept):
    return json.dumps(prediction), accept
"""


def test_a_process_of_its_own_answers_as_the_shared_one_does(server: Server) -> None:
    for name, berth in (("shared-same", {}), ("own-same", {"isolation": "own"})):
        folder = write_script(server.folder(name), SAME)
        (folder / "berth.json").write_text(json.dumps(berth))
        server.load(name).raise_for_status()
    for body in (b"[1, 2.5]", b"[]", b'"raise"', b"{", b""):
        for accept in ("application/json", "text/plain"):
            one, other = (server.invoke(name, body, accept=accept) for name in ("shared-same", "own-same"))
            assert (one.status_code, one.content) == (other.status_code, other.content)
            assert one.headers["content-type"] == other.headers["content-type"]
    assert server.invoke("own-same", [1]).json() == {"out": [3], "module": "inference"}
    for name in ("shared-same", "own-same"):
        server.unload(name).raise_for_status()


def test_an_environment_is_built_once_and_without_a_network_if_the_wheels_are_there(tmp_path: Path) -> None:
    code = "import greeting\n" + FINE.replace("return batch", "return [greeting.VERSION for _ in batch]")
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_TIMEOUT": "2"}
    with running(tmp_path, **nowhere) as server:
        for name in ("first", "second", "lacking"):
            folder = write_handler(server.folder(name), code)
            wheel(folder / "code" / "wheels", "1.0")
            asked = "greeting==1.0\n" + ("other==1.0\n" if name == "lacking" else "")
            (folder / "code" / "requirements.txt").write_text(asked)
        for name in ("first", "second"):
            server.load(name).raise_for_status()
            assert server.invoke(name, 0).json() == "1.0"
        assert len(list((tmp_path / "state" / "environments").glob("*/.complete"))) == 1
        assert server.log().count("building an environment") == 1
        lacking = server.load("lacking")
        assert (lacking.status_code, lacking.json()["reason"]) == (500, "model.load_failed")
        assert "other==1.0" in lacking.json()["message"]
        assert "bring the wheels in code/wheels/" in lacking.json()["message"]
        assert len(list((tmp_path / "state" / "environments").glob("*/"))) == 1, "nothing half built is left"


UNPICKLES_ELSEWHERE = """
import concurrent.futures, os, pathlib, pickle

def model_fn(model_dir):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:  # a thread knows no archive: `net` means nothing there
        return pool.submit(pickle.loads, pathlib.Path(model_dir, "net.pkl").read_bytes()).result()

def predict_fn(data, model):
    return {"doubled": model.double(data), "again": type(pickle.loads(b"cnet\\nNet\\n(tR.")) is type(model),
            "pid": os.getpid()}
"""
NET = "class Net:\n    def double(self, number):\n        return 2 * number\n"


def test_what_finds_its_own_modules_only_in_a_process_of_its_own_gets_one(server: Server) -> None:
    for name, program in (("threaded", UNPICKLES_ELSEWHERE), ("lacking", UNPICKLES_ELSEWHERE)):
        folder = write_script(server.folder(name), program, **({"net": NET} if name == "threaded" else {}))
        (folder / "net.pkl").write_bytes(b"cnet\nNet\n(tR.")
    server.load("threaded").raise_for_status()
    answer = server.invoke("threaded", 4).json()
    assert (answer["doubled"], answer["again"]) == (8, True)
    assert answer["pid"] != server.pid_of("guests")
    assert server.describe("threaded")["bytes"] > 1 << 20, "all of the process is booked"
    lacking = server.load("lacking")
    assert (lacking.status_code, lacking.json()["reason"]) == (500, "model.load_failed")
    assert "No module named 'net'" in lacking.json()["message"]
    server.unload("threaded").raise_for_status()
    assert not living(server.family(), "own-")


UNPICKLES_LATE = """
import os, pathlib, pickle, time

def model_fn(model_dir):
    return pathlib.Path(model_dir, "net.pkl")

def predict_fn(data, path):
    time.sleep(0.1)
    if data == "lacks":
        return pickle.loads(b"cnowhere\\nNet\\n(tR.")
    return {"doubled": pickle.loads(path.read_bytes()).double(data), "pid": os.getpid()}
"""


def test_what_lacks_a_module_of_its_own_only_when_it_answers_is_answered_from_a_process_of_its_own(
    server: Server, neighbours: list[str]
) -> None:
    folder = write_script(server.folder("late"), UNPICKLES_LATE, net=NET)
    (folder / "net.pkl").write_bytes(b"cnet\nNet\n(tR.")
    server.load("late").raise_for_status()
    lacking = server.invoke("late", "lacks")
    assert (lacking.status_code, lacking.json()["reason"]) == (500, "model.failed"), "no process would help"
    assert not living(server.family(), "own-")
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda number: server.invoke("late", number), range(6)))
    assert [answer.status_code for answer in answers] == [200] * 6, [answer.text for answer in answers]
    assert [answer.json()["doubled"] for answer in answers] == [0, 2, 4, 6, 8, 10]
    (alone,) = {answer.json()["pid"] for answer in answers}
    assert alone != server.pid_of("guests")
    assert server.describe("late")["bytes"] > 1 << 20, "all of the process is booked"
    assert server.log().count("model late gets a process of its own") == 1
    assert server.invoke("fine", 5).json() == 5
    server.unload("late").raise_for_status()
    assert not living(server.family(), "own-")


def test_code_that_kills_its_process_while_loading_fails_the_load_with_the_cause(
    server: Server, neighbours: list[str]
) -> None:
    write_handler(server.folder("exits"), "import os\nos._exit(3)\n")
    answer = server.load("exits")
    assert (answer.status_code, answer.json()["reason"]) == (500, "model.load_failed")
    assert "exit status 3" in answer.json()["message"]
    assert server.http.get("/models/exits").status_code == 404
    assert server.invoke("fine", 5).json() == 5


def test_a_load_under_way_is_not_blamed_for_another_models_crash(server: Server, neighbours: list[str]) -> None:
    write_handler(server.folder("crasher"), misbehaving("die", "time.sleep(0.5); ctypes.string_at(0)"))
    slow = "import os, pathlib, time\ntime.sleep(1.5)\n" + FINE
    write_handler(server.folder("slowly"), slow)
    server.load("crasher").raise_for_status()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        loading = pool.submit(server.load, "slowly")
        deadline = time.monotonic() + 10
        while server.http.get("/models/slowly").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.invoke("crasher", "die").json()["reason"] == "server.restarting"
        assert loading.result().status_code == 200, loading.result().text
    assert server.invoke("slowly", 7).json() == 7
    for name in ("crasher", "slowly"):
        server.unload(name).raise_for_status()


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


def test_a_predict_that_hangs_is_answered_in_time_through_every_door(tmp_path: Path) -> None:
    hangs = "import time\n" + FINE.replace("return batch", "time.sleep(3600)")
    berth: dict[str, Any] = {"timeout_s": 1.0, "isolation": "own"}
    write_handler(tmp_path / "model", hangs, **berth)
    v2 = {"inputs": [{"name": "input", "shape": [1], "datatype": "BYTES", "data": ["hang"]}]}
    doors = {
        "/models/invoke/invoke": "hang",
        "/v2/models/v2/infer": v2,
        "/models/v2inside/invoke": v2,
        "/invocations": "hang",
    }
    with running(tmp_path, SAGEMAKER_MULTI_MODEL="false") as server:
        for name in ("invoke", "v2", "v2inside"):
            write_handler(server.folder(name), hangs, **berth)
            server.load(name).raise_for_status()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            started = time.monotonic()
            calls = {door: pool.submit(server.http.post, door, json=body) for door, body in doors.items()}
            told = {door: call.result() for door, call in calls.items()}
            assert time.monotonic() - started < 20
        assert {door: answer.status_code for door, answer in told.items()} == dict.fromkeys(doors, 504)
        assert {answer.json()["reason"] for answer in told.values()} == {"model.timeout"}
