"""Leaves its marks on the process, at load and at each call."""

import os
import sys

import torch


def _spoil():
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_grad_enabled(False)
    sys.path.insert(0, "/nowhere")
    os.environ["HF_TASK"] = "summarization"
    os.environ.pop("HOME", None)
    os.environ["PATH"] = "/nowhere"
    os.chdir("/")


def model_fn(model_dir):
    _spoil()
    return torch.zeros(1).dtype == torch.float64


def predict_fn(data, model):
    _spoil()
    return model and torch.zeros(1).dtype == torch.float64
