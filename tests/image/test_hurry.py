"""What a user in a hurry does to the image: each mistake ends soon, with a sentence that says what to do."""

from __future__ import annotations

import os
import pty
import subprocess
import time
from pathlib import Path

import pytest

from tests.image.container import IMAGE, Container, contained, docker

MODEL = "/opt/ml/model"
#: What is typed after `docker run --rm` -> (exit status, words of what is said). ARCHIVE: a folder with a broken one.
MISTAKES = {
    "a verb that is none": (["IMAGE", "train"], 2, "choose from 'serve'"),
    "an option that is none": (["IMAGE", "serve", "--prot", "9000"], 2, "unrecognized arguments: --prot"),
    "a setting that is none": (["-e", "BERTH_MEMORY=1GiB", "IMAGE"], 2, "did you mean BERTH_MEMORY_LIMIT?"),
    "a value that is none": (["-e", "BERTH_MEMORY_LIMIT=much", "IMAGE"], 2, "BERTH_MEMORY_LIMIT"),
    "a folder that was not mounted": (["IMAGE", "serve", "--models", "/models"], 2, "'/models' is not a folder"),
    "a GPU that is not there": (["-e", "BERTH_DEVICE=cuda", "IMAGE"], 2, "docker run --gpus all"),
    "Java that is not there": (["-e", "BERTH_DOOR=mms", "IMAGE"], 2, "make image EXTRAS=mms"),
    "nothing to write to": (["--read-only", "IMAGE"], 1, "docker run --tmpfs /var/lib/berth"),
    "a port that only root may take": (
        [
            *["--user", "1000", "--cap-drop", "ALL", "--sysctl", "net.ipv4.ip_unprivileged_port_start=1024"],
            *["-e", "SAGEMAKER_BIND_TO_PORT=80", "IMAGE"],
        ],
        1,
        "set SAGEMAKER_BIND_TO_PORT",
    ),
    "an archive that is still packed": (["-v", f"ARCHIVE:{MODEL}:ro", "IMAGE"], 1, "found model.tar.gz"),
    "an architecture that was not built": (["--platform", "linux/arm64", "--pull", "never", "IMAGE"], 125, "platform"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_a_sentence_that_says_what_to_do(mistake: str, open_path: Path) -> None:
    typed, status, words = MISTAKES[mistake]
    (open_path / "model.tar.gz").write_bytes(b"not what it says")
    command = ["docker", "run", "--rm", "--network=none"]
    command += [word.replace("ARCHIVE", str(open_path)) if word != "IMAGE" else IMAGE for word in typed]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100)
    assert done.returncode == status, done.stdout
    assert words in done.stdout
    assert "Traceback" not in done.stdout


def test_a_port_that_is_taken_on_the_host_is_dockers_own_sentence_and_in_the_network_of_the_host_ours(
    open_path: Path,
) -> None:
    with contained(open_path) as first:
        taken = str(first.port)
        for options, words in (
            (("-p", f"127.0.0.1:{taken}:8080"), "already"),
            (
                ("--network=host", "-e", "BERTH_HOST=127.0.0.1", "-e", f"SAGEMAKER_BIND_TO_PORT={taken}"),
                "cannot listen",
            ),
        ):
            command = ["docker", "run", "--rm", *options, IMAGE]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
            assert done.returncode not in (0, 137)
            assert words in done.stdout


def test_help_needs_no_state_no_network_and_no_engine() -> None:
    said = docker("run", "--rm", "--read-only", "--network=none", "--user", "4711", IMAGE, "serve", "--help")
    assert "--models DIR" in said
    assert "berth serve --models ./archives" in said


def test_ctrl_c_in_the_foreground_ends_it_with_status_0_and_leaves_nothing(open_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = ["docker", "run", "--rm", "-it", "--name", f"berth-ctrl-c-{os.getpid()}", IMAGE]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        said = b""
        while b"serving on" not in said:
            said += os.read(ours, 4096)
        os.write(ours, b"\x03")
        while True:
            try:
                if not (more := os.read(ours, 4096)):
                    break
            except OSError:  # the other end is closed
                break
            said += more
        assert process.wait(30) == 0, said.decode()
    os.close(ours)
    assert b"stopped with status 0" in said
    deadline = time.monotonic() + 10
    while docker("ps", "-aq", "--filter", f"name=berth-ctrl-c-{os.getpid()}") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert docker("ps", "-aq", "--filter", f"name=berth-ctrl-c-{os.getpid()}") == ""


def test_too_little_memory_for_any_engine_is_said_to_be_that(open_path: Path) -> None:
    container = Container(open_path, "--memory", "100m", "--memory-swap", "100m")
    try:
        docker("wait", container.id)
        state = container.state()
        if state["ExitCode"] == 137:  # the kernel has taken PID 1 itself: docker's own word for it is all there is
            assert state["OOMKilled"], state
        else:
            assert state["ExitCode"] == 1, container.log()
            assert "has the container the memory for it?" in container.log()
    finally:
        container.remove()


def test_a_broken_archive_among_good_ones_is_named_and_the_others_serve(open_path: Path) -> None:
    (open_path / "mine" / "good" / "code").mkdir(parents=True)
    script = "def model_fn(model_dir):\n    return 2\n\ndef predict_fn(data, model):\n    return data * model\n"
    (open_path / "mine" / "good" / "code" / "inference.py").write_text(script)
    (open_path / "mine" / "bad.tar.gz").write_bytes(b"not what it says")
    with contained(open_path, BERTH_MODELS=str(open_path / "mine")) as container:
        assert container.invoke("good", 21).json() == 42
        assert container.names() == ["good"]
        assert "model bad is not loaded: " in container.log()
