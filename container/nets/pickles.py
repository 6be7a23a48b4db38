"""Why torch would not open a file with ``weights_only=True``, in a sentence. Pure; no torch."""

from __future__ import annotations

import re

#: How torch's own two paragraphs begin, of which the first helps nobody.
_REFUSED = "Weights only load failed"


def refused(text: str) -> bool:
    """Return whether ``text`` is torch's refusal of what could run code."""
    return text.startswith(_REFUSED)


def reason(text: str) -> str:
    """Return the reason in torch's ``text``: what is in the file and what to do; any other text's first line."""
    if not refused(text):
        return text.strip().split("\n")[0]
    found = re.search(r"GLOBAL ([\w.]+)", text)
    what = f"objects ({found[1]})" if found else "more than tensors"
    return f"it holds {what}, which could run code when it is opened; save model.state_dict() instead, as safetensors"
