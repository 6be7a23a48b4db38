"""``berth check`` and ``berth pack`` on what would serve, and what they say of it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from container.cli import check, main
from container.cli.findings import INSTANCES, advice, counts, fit, times
from container.cli.rehearsal import Tried
from container.cli.terminal import amount
from container.engine.report import Fault, Report, close, same
from container.payload import Payload
from tests.makers import tiny_bert
from tests.server import ROOT, write_handler, write_script

SCRIPT = """
import subprocess
subprocess.call(["pip", "install", "left-pad"])
def model_fn(d):
    return 3
def predict_fn(data, model):
    return [model * each for each in data]
"""
DIES = """
import os
def model_fn(d):
    return 1
def predict_fn(data, model):
    os._exit(3)
"""


def berth(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "container", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, check=False, timeout=100
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tiny_bert(home / "bert")
    write_script(home / "script", SCRIPT)
    write_script(home / "dies", DIES)
    return home


def test_several_models_are_tried_in_one_go_and_a_death_in_one_is_its_own(models: Path) -> None:
    (models / "dies" / "berth.json").write_text('{"warmup": {"a": 1}}')
    done = berth("check", models / "bert", models / "script", models / "dies", models / "bert", "--json")
    assert done.returncode == 1 and done.stderr == ""
    bert, script, dies, again = map(json.loads, done.stdout.splitlines())
    assert bert["fault"] is None and again["fault"] is None
    assert (bert["kind"], bert["task"], bert["place"], bert["request"]) == ("folder", "embeddings", "engine", "example")
    weights = (models / "bert" / "model.safetensors").stat().st_size
    assert bert["bytes"].keys() == {"device"} and 0.9 * weights <= bert["bytes"]["device"] <= weights * 1.1
    assert bert["freed_bytes"] == bert["bytes"]["device"]
    assert min(bert[name] for name in ("load_ms", "first_ms", "warm_ms", "rise_ms")) > 0
    assert bert["answer_type"] == "application/json" and bert["answer_start"].startswith("[[")
    assert (script["fault"], script["request"], script["place"]) == (None, "", "guests")
    assert any("pip install left-pad" in note and "code/requirements.txt" in note for note in script["notes"])
    assert (dies["fault"]["phase"], dies["fault"]["code"]) == ("answer", "server.restarting")
    assert "berth.json's warmup is not answered" in dies["fault"]["message"]


def test_a_given_payload_is_asked_and_what_is_refused_is_the_fault(models: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1,2\n")
    done = berth("check", models / "script", "--payload", tmp_path / "rows.csv", "--accept", "text/csv")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "would serve" in done.stdout
    assert "text/csv, 12 B: 1,2,1,2,1,2" in done.stdout
    (tmp_path / "wrong.json").write_text('{"input": "a"}')
    done = berth("check", models / "bert", "--payload", tmp_path / "wrong.json")
    assert done.returncode == 1
    assert "asking it: the request is not answered: inputs is missing" in done.stdout


def test_an_archive_that_never_finishes_loading_is_given_up(tmp_path: Path) -> None:
    write_script(tmp_path / "m", "import time\ndef model_fn(d):\n    time.sleep(600)\ndef predict_fn(d, m): ...\n")
    done = berth("check", tmp_path / "m", "--load-limit-s", "1.5")
    assert done.returncode == 1
    assert "loading it: it was not done within 2 s" in done.stdout


def test_the_limit_of_memory_is_the_servers_own(models: Path) -> None:
    done = berth("check", models / "bert", BERTH_MEMORY_LIMIT="1KiB")
    assert done.returncode == 1
    assert "can never fit" in done.stdout


def test_the_traceback_is_shown_on_request_only(tmp_path: Path) -> None:
    write_script(tmp_path / "m", "def model_fn(d):\n    return {}['weights']\ndef predict_fn(d, m): ...\n")
    plain, verbose = berth("check", tmp_path / "m"), berth("check", tmp_path / "m", "-v")
    assert plain.returncode == verbose.returncode == 1
    assert "Traceback" not in plain.stdout and "-v shows the traceback" in plain.stdout
    assert "return {}['weights']" in verbose.stdout


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["check", "/no/such/model.tar.gz"], "/no/such/model.tar.gz: no such file or directory"),
        (["check", ".", "--payload", "/no/such/file"], "/no/such/file: no such file or directory"),
        (["check"], "the following arguments are required: PATH"),
        (["pack", "/no/such/folder"], "/no/such/folder is not a folder"),
        (["pack", ".", "-o", "model.zip"], "does not end in .tar.gz"),
    ],
)
def test_wrong_usage_is_status_2_with_a_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(arguments)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert said in capsys.readouterr().err


# --- pack ------------------------------------------------------------------------------------------------------------


def test_what_serves_is_packed_and_the_same_files_give_the_same_bytes(models: Path, tmp_path: Path) -> None:
    (models / "bert" / ".ipynb_checkpoints").mkdir()
    done = berth("pack", models / "bert", "-o", tmp_path / "one.tar.gz")
    assert done.returncode == 0, done.stdout + done.stderr
    again = berth("pack", models / "bert", "-o", tmp_path / "two.tar.gz", "--no-check")
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    assert done.stdout.split()[-1] == again.stdout.split()[-1]
    with tarfile.open(tmp_path / "one.tar.gz") as packed:
        assert sorted(packed.getnames()) == ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]
    assert berth("check", tmp_path / "one.tar.gz").returncode == 0


def test_what_would_not_serve_is_not_packed_unless_told_so(tmp_path: Path) -> None:
    write_script(tmp_path / "m", "def model_fn(d):\n    raise OSError('no adapter')\ndef predict_fn(d, m): ...\n")
    done = berth("pack", tmp_path / "m", "-o", tmp_path / "m.tar.gz")
    assert done.returncode == 1 and "no adapter" in done.stdout and "not packed" in done.stderr
    assert not (tmp_path / "m.tar.gz").exists()
    assert berth("pack", tmp_path / "m", "-o", tmp_path / "m.tar.gz", "--no-check").returncode == 0
    (tmp_path / "nothing").mkdir()
    done = berth("pack", tmp_path / "nothing", "-o", tmp_path / "n.tar.gz", "--no-check")
    assert done.returncode == 1 and "no model in" in done.stderr


# --- what is shown ---------------------------------------------------------------------------------------------------


def on_a_terminal(*arguments: object, **environ: str) -> str:
    """What a person sees: stdout and stderr of the command, both a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "container", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "TERM": "xterm", **environ}, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # the terminal's other end has closed
            break
        if not data:
            break
        seen += data
    os.close(ours)
    assert process.wait(60) == 0, seen
    return seen.decode()


def test_progress_and_colours_are_for_terminals_and_no_color_is_honoured(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "bert.tar.gz"
    seen = on_a_terminal("pack", models / "bert", "-o", out)
    assert "loading it ..." in seen and "packing bert.tar.gz [############################]" in seen
    assert "\x1b[32mpacked\x1b[0m" in seen
    plain = on_a_terminal("pack", models / "bert", "-o", out, "--no-check", NO_COLOR="1")
    assert "\x1b[32m" not in plain and "packed" in plain and "[####" in plain
    piped = berth("pack", models / "bert", "-o", out, "--no-check")
    assert "\x1b" not in piped.stdout + piped.stderr and "[#" not in piped.stdout + piped.stderr


def test_how_many_fit_counts_the_gpu_where_there_is_one() -> None:
    assert [fit(1 << 30, instance) for instance in INSTANCES] == [12, 50, 12, 19]
    assert fit(1 << 40, INSTANCES[0]) == 0
    assert counts(Report(bytes={"device": 1 << 30, "host": 1 << 30}))[0] == ("ml.m5.xlarge", 12)
    assert counts(Report()) == []


def test_times_that_were_not_measured_are_left_out() -> None:
    report = Report(load_ms=1234.5, times_ms={"import": 0.2, "load": 1200.4}, first_ms=12.34)
    assert times(report) == [("load", "1234 ms (load 1200)"), ("first answer", "12.3 ms")]


def test_advice_is_what_is_no_fault() -> None:
    quiet = Report(request="example", bytes={"device": 5}, load_ms=10, first_ms=10)
    assert advice(quiet) == []
    assert "no example" in advice(Report(bytes={"device": 5}))[0]
    assert "sees no weights" in advice(Report(request="given"))[0]
    slow = Report(request="given", bytes={"device": 5}, load_ms=31_000, first_ms=1, varies=True, notes=["a"])
    assert [each[:9] for each in advice(slow)] == ["a", "the same ", "load and "]
    assert advice(Report(fault=Fault("load", "x", "y"))) == []
    service = Report(kind="mar", request="given", bytes={"device": 5})
    assert "the archive's folder as working directory" in advice(service)[0]


def test_answers_are_the_same_up_to_the_last_digits() -> None:
    def answer(body: bytes) -> Payload:
        return Payload(body, "application/json")

    assert same(answer(b'[1.0000001, "a"]'), answer(b'[1.0000002, "a"]'))
    assert not same(answer(b"[1.0]"), answer(b"[1.1]"))
    assert not same(answer(b"[1.0]"), answer(b"[1.0, 2.0]"))
    assert not same(Payload(b"1.0000001", "text/csv"), Payload(b"1.0000002", "text/csv"))
    assert not same(answer(b"nan"), answer(b"1"))
    assert close({"a": [1.0, {"b": 2}]}, {"a": [1, {"b": 2}]})
    assert not close({"a": 1.0}, {"b": 1.0})


def test_bytes_are_told_as_people_read_them() -> None:
    assert [amount(each) for each in (0, 1023, 1536, 5 << 20, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 MiB",
        "3072.0 GiB",
    ]


def test_a_handler_that_answers_otherwise_each_time_is_not_compared(tmp_path: Path) -> None:
    code = """
import os
from container.handler import Handler
from container.payload import Payload
class Rolls(Handler):
    example = Payload(b"1")
    def predict(self, batch):
        return [os.urandom(4).hex() for _ in batch]
"""
    write_handler(tmp_path / "m", code)
    done = berth("check", tmp_path / "m")
    assert done.returncode == 0
    assert "answered differently each time" in done.stdout


def test_nothing_that_a_model_says_acts_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    owns = "\x1b]0;owned\x07 \x9b2J größer"
    report = Report(kind="script", place="guests", bytes={"device": 1}, answer_type=owns, answer_start=owns)
    report.fault, report.notes = Fault("answer", "model.failed", owns), [owns]
    check.show(Path("m"), Tried(report, f"Traceback:\n{owns}"), verbose=True)
    said = capsys.readouterr().out
    assert said.count("\\u001b]0;owned\\u0007 \\u009b2J größer") == 5
    assert not {"\x1b", "\x07", "\x9b"} & set(said)
