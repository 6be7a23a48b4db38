import subprocess
import sys

import pytest
from archives_at_hand import bodies

from container.model import installs
from container.payload import Payload


@pytest.mark.parametrize(
    "command",
    [
        ["pip", "install", "x"],
        ("pip3.11", "install", "-q", "x"),
        ["/usr/bin/pip3", "uninstall", "-y", "x"],
        [sys.executable, "-m", "pip", "install", "x"],
        ["python3", "-u", "-m", "pip", "--quiet", "install", "x"],
        ["uv", "pip", "install", "x"],
        ["bash", "-c", "cd /tmp; pip install x"],
        ["env", "PIP_INDEX_URL=x", "pip", "install", "x"],
        "pip install x",
        "export A=1 && python -m pip install x | tail -1",
        "A=1 pip install x > /dev/null",
        "true\npip install x",
        b"pip install x",
    ],
)
def test_calls_that_change_packages_are_seen(command):
    assert installs.changes_packages(command)


@pytest.mark.parametrize(
    "command",
    [
        ["pip", "list"],
        ["pip", "--version"],
        ["git", "clone", "pip"],
        ["echo", "pip", "install"],
        "echo pip install x",
        "apt-get install x",
        ["npm", "install"],
        [sys.executable, "pip.py", "install"],
        ["python", "-m", "pipeline", "install"],
        "unbalanced ' pip install",
        [],
        "",
        3,
    ],
)
def test_other_commands_are_left_alone(command):
    assert not installs.changes_packages(command)


def test_a_script_that_installs_goes_on_and_the_log_says_what_to_do(opened, baseline, caplog):
    model = opened("calls_pip", name="cats")
    assert bodies(model.handler, Payload(b"1")) == [b'[0,"",0,"",0,0]']
    told = [record.message for record in caplog.records if "calls `" in record.message]
    assert len(told) == 6
    assert all("code/requirements.txt" in message for message in told)
    assert "`pip install no-such-package-anywhere`" in told[0]


def test_pip_called_as_a_module_installs_nothing(baseline, caplog):
    from pip._internal.cli.main import main

    assert main(["install", "no-such-package-anywhere"]) == 0
    assert "nothing was installed" in caplog.text


def test_other_programs_run_as_ever(baseline):
    assert subprocess.check_output(["echo", "install"], text=True) == "install\n"
    assert subprocess.run("exit 3", shell=True, check=False).returncode == 3


def test_without_a_baseline_commands_run_as_they_are(baseline):
    before = subprocess.Popen.__init__
    installs.allow()
    assert subprocess.Popen.__init__ is not before
