import json
import os
import subprocess

subprocess.call(["pip", "install", "transformers==4.17.0"])

from transformers import GPT2LMHeadModel, GPT2Tokenizer, TextGenerationPipeline


def model_fn(model_dir):
    path = os.path.join(model_dir, "model")
    tokenizer = GPT2Tokenizer(vocab_file=os.path.join(path, "vocab.json"), merges_file=os.path.join(path, "merges.txt"))
    model = GPT2LMHeadModel.from_pretrained(path)
    return TextGenerationPipeline(model=model, tokenizer=tokenizer)


def input_fn(serialized_input_data, content_type):
    if content_type == "application/json":
        return json.loads(serialized_input_data)
    return serialized_input_data


def predict_fn(input_data, generator):
    return generator(input_data, do_sample=False, max_new_tokens=12)


def output_fn(prediction, accept):
    return str(prediction)
