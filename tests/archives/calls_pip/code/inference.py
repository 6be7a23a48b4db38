"""Installs things in every way there is, and notes what it was told."""

import os
import subprocess
import sys

TOLD = [
    subprocess.call(["pip", "install", "no-such-package-anywhere"]),
    subprocess.run(["pip3", "install", "x"], capture_output=True, text=True, check=True).stdout,
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", "x"]),
    subprocess.check_output("cd / && PIP_QUIET=1 pip install x", shell=True, text=True),
    subprocess.Popen(["sh", "-c", "pip install x"]).wait(),
    os.system("python -m pip install x; uv pip install y"),
]


def model_fn(model_dir):
    return TOLD


def predict_fn(data, model):
    return model
