"""Has a module named like one of Python's and one named like an installed package; both are meant."""

import json

import flask


def model_fn(model_dir):
    return json.MARK + flask.MARK


def predict_fn(data, model):
    import os.path as standard  # not at home

    return [model, standard.sep]
