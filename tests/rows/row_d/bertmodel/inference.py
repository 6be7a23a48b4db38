import json
import os
import subprocess
import sys

subprocess.check_call([sys.executable, "-m", "pip", "install", "transformers==4.17.0"])

from transformers import BertModel, BertTokenizer


def model_fn(model_dir):
    path = os.path.join(model_dir, "model")
    tokenizer = BertTokenizer.from_pretrained(path)
    model = BertModel.from_pretrained(path)
    return {"model": model, "tokenizer": tokenizer}


def input_fn(serialized_input_data, content_type):
    if content_type == "application/json":
        return json.loads(serialized_input_data)
    return serialized_input_data


def predict_fn(input_data, model_dict):
    tokenizer = model_dict["tokenizer"]
    model = model_dict["model"]
    encoded_input = tokenizer(input_data, return_tensors="pt")
    return model(**encoded_input)


def output_fn(prediction, accept):
    return str(prediction)
