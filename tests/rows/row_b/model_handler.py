# ruff: noqa
"""The service of row B as its image has it: module level, one function, PyTorch in MXNet's place."""

import io
import os

import numpy as np
import torch
from PIL import Image
from transformers import ResNetForImageClassification


class ModelHandler:
    def __init__(self):
        self.initialized = False

    def initialize(self, context):
        properties = context.system_properties
        model_dir = properties.get("model_dir")
        try:
            self.net = ResNetForImageClassification.from_pretrained(os.path.join(model_dir, "network")).eval()
        except RuntimeError as error:
            if "Failed to allocate" in str(error):
                raise MemoryError(error)
            raise
        with open("synset.txt") as file:
            self.labels = [line.rstrip() for line in file]
        self.initialized = True

    def preprocess(self, request):
        images = []
        for data in request:
            image = Image.open(io.BytesIO(data.get("body"))).convert("RGB").resize((32, 32))
            images.append(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255)
        return torch.from_numpy(np.stack(images))

    def inference(self, images):
        with torch.no_grad():
            return self.net(images).logits.softmax(dim=1)

    def postprocess(self, probabilities):
        answers = []
        for row in probabilities:
            best = row.argsort(descending=True)[:5]
            answers.append(["probability=%f, class=%s" % (row[i], self.labels[i]) for i in best])
        return answers

    def handle(self, data, context):
        return self.postprocess(self.inference(self.preprocess(data)))


_service = ModelHandler()


def handle(data, context):
    if not _service.initialized:
        _service.initialize(context)
    if data is None:
        return None
    return _service.handle(data, context)
