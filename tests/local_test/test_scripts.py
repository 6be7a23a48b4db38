"""The shell scripts, run as a person runs them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_container import until

from local_test import archives
from local_test.processes import ROOT, free_port

PAYLOADS = ROOT / "local_test" / "payloads"


def predict(*arguments):
    done = subprocess.run([ROOT / "local_test" / "predict.sh", *map(str, arguments)], capture_output=True, timeout=60)
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize(
    "file, expected",
    [
        ("sentences.json", "application/json"),
        ("celsius.csv", "text/csv"),
        ("digit.png", "image/png"),
    ],
)
def test_predict_sends_the_file_as_it_is_with_the_type_of_its_name(stand_in, container, file, expected):
    local = stand_in()
    code, out, err = predict("-u", local.url, "team/d.tar.gz", PAYLOADS / file)
    assert (code, out, err) == (0, b"echo:" + (PAYLOADS / file).read_bytes(), "")
    sent = {name.lower(): value for name, value in container.headers[-1].items()}
    assert sent["content-type"] == expected
    assert sent["x-amzn-sagemaker-target-model"] == "team/d.tar.gz"


def test_predict_asks_a_single_model_endpoint_without_a_target(stand_in, container):
    local = stand_in(single=True)
    code, out, _ = predict("-u", local.url, "-t", "a/b", "-a", "c/d", "-", PAYLOADS / "celsius.csv")
    assert (code, out) == (0, b"echo:0\n37\n100\n")
    sent = {name.lower(): value for name, value in container.headers[-1].items()}
    assert (sent["content-type"], sent["accept"]) == ("a/b", "c/d")
    assert "x-amzn-sagemaker-target-model" not in sent


def test_predict_tells_a_refusal_from_wrong_arguments_and_from_silence(stand_in, container):
    local = stand_in()
    payload = PAYLOADS / "celsius.csv"
    code, out, err = predict("-u", local.url, "nobody.tar.gz", payload)
    assert (code, out) == (1, b"") and "Failed to download model data" in err
    assert predict("a.tar.gz")[0] == 2
    assert predict("--nonsense", "a.tar.gz", payload)[0] == 2
    assert predict("a.tar.gz", "/no/such/file")[0] == 2
    code, _, err = predict("-u", f"http://127.0.0.1:{free_port()}", "a.tar.gz", payload)
    assert code == 3 and "is local_test/serve_local.sh running?" in err


@pytest.mark.parametrize("script", ["predict.sh", "serve_local.sh"])
def test_help_goes_to_stdout_and_is_no_error(script):
    done = subprocess.run([ROOT / "local_test" / script, "--help"], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: local_test/{script}")


@pytest.mark.parametrize("arguments", [[], ["/no/such/folder"], ["a", "b"], ["--single"], ["--nonsense"], ["-p"]])
def test_serve_local_refuses_wrong_arguments_before_it_starts_anything(arguments):
    done = subprocess.run(
        [ROOT / "local_test" / "serve_local.sh", *arguments], capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("serve_local.sh: ")


@pytest.mark.parametrize("single", [False, True])
def test_serve_local_serves_with_the_real_server_and_leaves_nothing_behind(tmp_path, single):
    made = tmp_path / "made"
    made.mkdir()
    archives.MODELS["celsius"].fill(made)
    (tmp_path / "archives").mkdir()
    archive = tmp_path / "archives" / "celsius.tar.gz"
    archives.pack(made, archive)
    (tmp_path / "tmp").mkdir()
    port = free_port()
    what = ["--single", archive] if single else [tmp_path / "archives"]
    log = tmp_path / "log"
    with log.open("wb") as out:
        serving = subprocess.Popen(
            [ROOT / "local_test" / "serve_local.sh", "-s", str(free_port()), "-p", str(port), *what],
            stdout=out,
            stderr=out,
            env={**os.environ, "PYTHON": sys.executable, "TMPDIR": str(tmp_path / "tmp")},
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        until(lambda: f"\n{address}\n" in "\n" + log.read_text() or serving.poll() is not None)
        target = "-" if single else "celsius.tar.gz"
        assert predict("-u", address, target, PAYLOADS / "celsius.csv") == (0, b"[32.0, 98.6, 212.0]", ""), (
            log.read_text()
        )
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(40) == 0
        assert _members_of(serving.pid) == []
        assert list((tmp_path / "tmp").glob("berth-local-*")) == []
    finally:
        if _members_of(serving.pid):
            os.killpg(serving.pid, signal.SIGKILL)
        serving.wait()


def _members_of(session):
    """Return the processes of a session, without zombies."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z" and int(fields[3]) == session:
            found.append(int(status.parent.name))
    return found
