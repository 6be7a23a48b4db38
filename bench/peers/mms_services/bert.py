"""A sentence embedder as a team would write it for multi-model-server: transformers, mean pooling, unit length.

Serves the tiny BERTs, BERT-base and MiniLM alike.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer


class Service:
    """One loaded model."""

    def __init__(self) -> None:
        self.ready = False

    def load(self, folder: str) -> None:
        """Read tokenizer and weights from ``folder``."""
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()
        self.ready = True

    def embed(self, texts: list[str]) -> list[list[float]]:
        """Return one vector of unit length for each text."""
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        with torch.inference_mode():
            hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            vectors: list[list[float]] = torch.nn.functional.normalize(pooled, dim=1).tolist()
        return vectors


_service = Service()


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[str] | None:
    """Answer ``{"inputs": text}`` with its vector as JSON; the first call loads."""
    if not _service.ready:
        _service.load(context.system_properties["model_dir"])
    if data is None:
        return None
    texts = [json.loads(item["body"])["inputs"] for item in data]
    context.set_response_content_type(0, "application/json")
    return [json.dumps(vector) for vector in _service.embed(texts)]
