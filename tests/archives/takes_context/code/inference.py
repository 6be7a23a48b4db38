"""Takes a context wherever it can, in every way that is written."""

import json


def model_fn(model_dir, context):
    return context.system_properties


def input_fn(data, content_type, context=None):
    return {"type": type(data).__name__, "content_type": content_type, "context": context is not None}


def predict_fn(data, model, *, context):
    return {**data, "model_dir": model["model_dir"], "same": context.system_properties is model}


def output_fn(prediction, accept):
    return json.dumps({**prediction, "accept": accept}).encode(), "application/json; of=takes_context"
