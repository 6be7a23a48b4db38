"""As the oldest scripts do: pip first, then a dict of a network and more, JSON only if it says so, str() out."""

import subprocess

subprocess.call(["pip", "install", "transformers==4.17.0"])
import json  # noqa: E402

import torch  # noqa: E402


def model_fn(model_dir):
    return {"model": torch.nn.Linear(2, 2), "tokenizer": len}


def predict_fn(input_data, model_dict):
    return model_dict["tokenizer"](input_data), tuple(model_dict["model"](torch.zeros(1, 2)).shape)


def input_fn(request_body, request_content_type):
    return json.loads(request_body) if request_content_type == "application/json" else request_body


def output_fn(prediction, response_content_type):
    return str(prediction)
