"""Puts folders of its own on sys.path, as scripts with a lib/ do, and imports from them later."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parent / "lib"))
sys.path.append(str(pathlib.Path(__file__).parent))
import hidden


def model_fn(model_dir):
    return hidden.PLACE


def predict_fn(data, model):
    import hidden_too

    return model + hidden_too.PLACE
