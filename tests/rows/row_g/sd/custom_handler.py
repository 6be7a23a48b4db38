# ruff: noqa
"""Text to image, small: a class of its own, no base class; bytes out with a content type."""

import hashlib
import os

import numpy as np


class TextToImage:
    def __init__(self):
        self.initialized = False

    def initialize(self, context):
        self.manifest = context.manifest
        properties = context.system_properties
        self.device = "cuda:" + str(properties["gpu_id"]) if properties.get("gpu_id") is not None else "cpu"
        with open(os.path.join(properties["model_dir"], self.manifest["model"]["serializedFile"]), "rb") as file:
            self.weights = np.load(file)
        self.initialized = True

    def handle(self, data, context):
        answers = []
        for index, row in enumerate(data):
            prompt = row["body"].decode()
            seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "little")
            noise = np.random.default_rng(seed).normal(size=self.weights.shape[1])
            image = np.clip(self.weights @ noise * 127 + 128, 0, 255).astype(np.uint8)
            context.set_response_content_type(index, "image/x-raw")
            context.metrics.add_time("denoise", 1.0, index)
            answers.append(image.tobytes())
        return answers
