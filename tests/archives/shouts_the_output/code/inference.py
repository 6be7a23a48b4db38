"""Beside a config.json: only output_fn, the rest is the built-in task's."""


def output_fn(prediction, accept):
    return f"{prediction!r}!", "text/plain"
