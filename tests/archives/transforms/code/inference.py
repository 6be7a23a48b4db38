"""transform_fn in place of the three, with a trailing context under another name."""


def model_fn(model_dir):
    return "seen"


def transform_fn(model, data, content_type, accept, surroundings):
    shown = f"{model} {type(data).__name__} {content_type} {accept} {surroundings.system_properties['gpu_id']}"
    return shown, "text/plain"
