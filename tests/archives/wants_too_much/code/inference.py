def model_fn(model_dir):
    return None


def predict_fn(data, model, context, more):
    return data
