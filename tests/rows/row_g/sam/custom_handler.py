# ruff: noqa
"""Segmentation, small: TorchScript by the base class, JSON with a base64 image in, a mask out."""

import base64
import json

import numpy as np
import torch

from ts.torch_handler.base_handler import BaseHandler


class SegmentHandler(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.value = context.model_yaml_config["handler"]["mask_value"]

    def preprocess(self, requests):
        assert len(requests) == 1, "batchSize is 1"
        data = requests[0].get("data") or requests[0].get("body")
        if isinstance(data, (bytes, bytearray)):
            data = data.decode("utf-8")
        body = json.loads(data)
        pixels = np.frombuffer(base64.b64decode(body["image"]), dtype=np.uint8).reshape(body["shape"])
        return torch.from_numpy(pixels.astype(np.float32)).to(self.device)

    def postprocess(self, outputs):
        mask = (outputs.cpu().numpy() > 0).astype(np.uint8) * self.value
        return [json.dumps({"mask": base64.b64encode(mask.tobytes()).decode(), "shape": list(mask.shape)})]
