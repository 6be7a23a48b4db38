"""Answers with its own word, from modules whose names other archives use, too."""

import utils
from parts.words import WORD

from . import utils as again

assert again is utils


def model_fn(model_dir):
    return utils.word()


def predict_fn(data, model):
    import lazy  # imported by the first request, on whatever thread serves it
    import parts.deep.leaf as leaf

    return [model, WORD, lazy.word(), leaf.WORD, data]
