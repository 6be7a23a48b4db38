"""The ways to start a server with models in it, and to fail at it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from tests.makers import tiny_bert
from tests.server import ROOT, Server, running, write_handler, write_script

ECHO = """
from container.handler import Handler

class Echo(Handler):
    def predict(self, batch):
        return batch
"""


def test_a_single_model_stands_behind_invocations_and_ping_waits_for_it(tmp_path: Path) -> None:
    write_handler(tmp_path / "model", "import time\ntime.sleep(1)\n" + ECHO)
    with running(tmp_path, SAGEMAKER_MULTI_MODEL="") as server:
        answer = server.http.post("/invocations", json={"a": 1})
        assert (answer.status_code, answer.json()) == (200, {"a": 1})
        assert server.names() == ["model"]


def test_a_single_model_that_does_not_load_ends_the_server_with_its_reason(tmp_path: Path) -> None:
    write_script(
        tmp_path / "model",
        "def model_fn(d):\n    raise RuntimeError('no such file: adapter')\ndef predict_fn(d, m): ...",
    )
    server = Server(tmp_path, SAGEMAKER_MULTI_MODEL="")
    assert server.process.wait(40) == 1
    assert "no such file: adapter" in server.log()
    server.http.close()


def test_a_folder_of_models_is_loaded_at_start_and_a_broken_one_is_left_out(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    tiny_bert(shelf / "plain")
    write_handler(tmp_path / "packed", ECHO)
    with tarfile.open(shelf / "packed.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "packed", arcname=".")
    (shelf / "nothing").mkdir()
    with running(tmp_path, "--models", str(shelf)) as server:
        assert server.names() == ["packed", "plain"]  # /ping was 200 only when it was through with them
        assert server.invoke("packed", [1]).json() == [1]
        assert len(server.invoke("plain", {"inputs": "a b"}).json()) == 32
        assert any("nothing" in line["message"] and line["level"] == "error" for line in server.log_lines())


def test_an_archive_of_the_folder_is_known_by_its_own_path_and_who_was_left_out_is_told_why(tmp_path: Path) -> None:
    shelf = tmp_path / "my shelf"
    shelf.mkdir()
    write_handler(tmp_path / "packed", ECHO)
    archive, nested = shelf / "packed.tar.gz", shelf / "nested.tar.gz"
    for file, name in ((archive, "."), (nested, "top")):
        with tarfile.open(file, "w:gz") as tar:
            tar.add(tmp_path / "packed", arcname=name)
    with running(tmp_path, "--models", str(shelf)) as server:
        assert str(nested) in server.log()
        assert server.http.get("/models").json() == {"models": [{"modelName": "packed", "modelUrl": str(archive)}]}
        assert server.describe("packed")["modelUrl"] == str(archive)
        refused = server.invoke("nested", [1])
        assert refused.status_code == server.http.get("/models/nested").status_code == 404
        assert "left out at start: no model in nested: looked for" in refused.json()["message"]
        assert "down in top" in server.http.get("/models/nested").json()["message"]

        server.unload("packed").raise_for_status()
        server.load("packed", archive).raise_for_status()
        server.load("again", archive).raise_for_status()
        os.kill(server.pid_of("engine"), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while server.invoke("again", [1]).status_code == 503 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.invoke("packed", [1]).json() == [1]
        assert server.describe("packed")["modelUrl"] == server.describe("again")["modelUrl"] == str(archive)
        assert "unpacked/" not in server.log()


def test_two_servers_cannot_share_a_port_and_a_state_folder(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        second = Server(
            tmp_path / "other", BERTH_STATE_DIR=str(tmp_path / "state"), SAGEMAKER_BIND_TO_PORT=str(server.port)
        )
        assert second.process.wait(20) == 1
        assert "another berth server" in second.log()
        second.http.close()
        assert server.http.get("/ping").status_code == 200


def test_a_port_that_is_taken_ends_the_server_with_a_sentence(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        second = Server(tmp_path / "other", SAGEMAKER_BIND_TO_PORT=str(server.port))
        assert second.process.wait(60) == 1
        assert f"cannot listen on 127.0.0.1:{server.port}" in second.log()
        assert "Traceback" not in second.log()
        second.http.close()


def test_an_address_that_is_not_here_is_told_from_a_port_that_is_taken(tmp_path: Path) -> None:
    server = Server(tmp_path, "--host", "192.0.2.1")
    assert server.process.wait(60) == 1
    assert "cannot listen on 192.0.2.1" in server.log()
    assert "set BERTH_HOST (berth serve --host)" in server.log()
    server.http.close()


def test_a_state_folder_that_cannot_be_written_ends_the_server_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = Server(tmp_path, BERTH_STATE_DIR=str(tmp_path / "file" / "state"))
    assert server.process.wait(60) == 1
    assert "cannot write to the state folder" in server.log()
    assert "Traceback" not in server.log()
    server.http.close()


def test_a_gpu_that_is_not_there_ends_the_server_at_once_with_status_2(tmp_path: Path) -> None:
    server = Server(tmp_path, BERTH_DEVICE="cuda:99")
    assert server.process.wait(60) == 2
    assert "docker run --gpus all" in server.log()
    assert server.log().count("BERTH_DEVICE=cuda:99") == 1, "it does not try again"
    assert "Traceback" not in server.log()
    server.http.close()


def test_the_process_that_serves_carries_nothing_of_other_verbs() -> None:
    code = (
        "import sys\nfrom container.cli import main\ntry: main(['serve', '-h'])\nexcept SystemExit: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "container.supervise" in loaded
    assert not {"numpy", "torch", "flask", "container.cli.check", "container.cli.deploy"} & loaded


def test_every_family_of_metrics_says_what_it_is(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        write_handler(server.folder("echo"), ECHO)
        server.load("echo").raise_for_status()
        assert server.invoke("echo", [1]).json() == [1]
        lines = server.http.get("/metrics").text.splitlines()
    told = dict(line.removeprefix("# HELP ").split(" ", 1) for line in lines if line.startswith("# HELP "))
    assert {"berth_invocations_total", "berth_load_seconds", "berth_memory_bytes"} <= told.keys()
    assert [name for name, text in told.items() if text.startswith(name.removesuffix("_total").replace("_", " "))] == []


def test_invocations_are_counted_by_model_where_that_is_wanted_and_names_nobody_registered_are_not(
    tmp_path: Path,
) -> None:
    with running(tmp_path, BERTH_METRICS_PER_MODEL="on") as server:
        write_handler(server.folder("echo"), ECHO)
        server.load("echo").raise_for_status()
        assert server.invoke("echo", [1]).json() == [1]
        assert server.invoke("made-up", [1]).status_code == 404
        counted = [line for line in server.http.get("/metrics").text.splitlines() if "_invocations_total{" in line]
        assert sorted(counted) == [
            'berth_invocations_total{code="model.not_found",model=""} 1.0',
            'berth_invocations_total{code="ok",model="echo"} 1.0',
        ]
        server.unload("echo").raise_for_status()
        assert 'model="echo"' not in server.http.get("/metrics").text


def test_a_folder_of_sockets_that_is_none_is_refused_and_ours_goes_with_the_server(tmp_path: Path) -> None:
    deep = {"BERTH_STATE_DIR": str(tmp_path / ("d" * 100))}
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:
        deep["TMPDIR"] = short
        with running(tmp_path, **deep) as server:
            (folder,) = Path(short).iterdir()
            assert folder.name.startswith(f"berth-{os.getuid()}-")
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert list(Path(short).iterdir()) == []
        for spoil in (lambda: folder.symlink_to(tmp_path), folder.touch):
            spoil()
            refused = Server(tmp_path, **deep, SAGEMAKER_BIND_TO_PORT=str(server.port))
            assert refused.process.wait(60) == 1
            assert "BERTH_STATE_DIR" in refused.log()
            assert "Traceback" not in refused.log()
            refused.http.close()
            folder.unlink()
