"""A model that does nothing, as a function-style service of multi-model-server."""

from __future__ import annotations

from typing import Any


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[Any] | None:
    """Answer each body with itself; called with None once, to load."""
    if data is None:
        return None
    context.set_response_content_type(0, "application/json")
    return [item["body"] for item in data]
