"""A Handler subclass; keeps a network, and fails on what is no number."""

import torch

from container.errors import BadInput
from container.handler import Handler
from container.payload import Payload


class Doubles(Handler):
    task = "doubling"
    example = Payload(b"21")

    def load(self, model_dir, context):
        self.net = torch.nn.Linear(1, 1, bias=False)
        self.net.weight.data.fill_(2.0)
        self.tied = [self.net]

    def decode(self, payload):
        value = super().decode(payload)
        if isinstance(value, str):
            raise BadInput("a number was expected, not a text")
        return value

    def predict(self, batch):
        return self.net(torch.tensor(batch, dtype=torch.float32)[:, None])[:, 0].tolist()
