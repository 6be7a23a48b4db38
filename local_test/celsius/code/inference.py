"""A model with code of its own, as small as one can be: Celsius in, Fahrenheit out, by one linear layer."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def model_fn(model_dir: str) -> torch.nn.Module:
    """Build the model and read its weights."""
    model = torch.nn.Linear(1, 1)
    model.load_state_dict(load_file(Path(model_dir) / "weights.safetensors"))
    return model.eval()


def input_fn(body: str, content_type: str) -> torch.Tensor:
    """One temperature a line (text/csv), or a JSON list of them."""
    values = body.split() if content_type.startswith("text/csv") else json.loads(body)
    return torch.tensor([[float(value)] for value in values])


def predict_fn(celsius: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """Run the model."""
    with torch.no_grad():
        fahrenheit: torch.Tensor = model(celsius)
    return fahrenheit


def output_fn(fahrenheit: torch.Tensor, accept: str) -> tuple[str, str]:
    """A JSON list of temperatures, rounded to tenths."""
    return json.dumps([round(row[0], 1) for row in fahrenheit.tolist()]), "application/json"
