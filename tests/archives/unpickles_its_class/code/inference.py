"""Knows its own classes by bare names: in a pickle, in torch.load, through importlib, now and later."""

import importlib
import pathlib
import pickle

import torch


def model_fn(model_dir):
    home = pathlib.Path(model_dir)
    net = importlib.import_module("net")
    with (home / "net.pkl").open("rb") as file:
        unpickled = pickle.load(file)
    whole = torch.load(home / "net.pt", weights_only=False)
    assert type(unpickled) is type(whole) is net.Net
    return whole


def predict_fn(data, model):
    net = importlib.import_module("net")
    return [type(model) is net.Net, pickle.loads(pickle.dumps(net.Point(1, 2))) == net.Point(1, 2), net.hints()]
