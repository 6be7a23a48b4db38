def transform_fn(model, data, content_type, accept):
    return data


def predict_fn(data, model):
    return data
