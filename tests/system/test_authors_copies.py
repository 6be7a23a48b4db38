"""Copies of an author's model are kept once, through the real server: bytes, figures, and the same answers."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.makers import tiny_bert
from tests.server import running, until, write_script

CODE = """
import torch
from transformers import AutoModel

def model_fn(model_dir):
    return AutoModel.from_pretrained(model_dir).eval()

def predict_fn(data, model):
    if data == "write":
        with torch.no_grad():
            model.embeddings.word_embeddings.weight.mul_(2)
        return "done"
    with torch.no_grad():
        return model(input_ids=torch.tensor([data])).last_hidden_state.sum(-1).tolist()
"""
NAMES = ("one", "two", "three")


def test_copies_that_an_authors_code_loads_with_transformers_are_kept_once_and_answer_apart(tmp_path: Path) -> None:
    original = tiny_bert(tmp_path / "original", hidden=128, layers=2)
    with running(tmp_path / "base", BERTH_DEVICE="cpu") as server:
        for name in NAMES:
            shutil.copytree(original, server.folder(name))
            write_script(server.folder(name), CODE)
        assert server.load("one").status_code == 200
        expected = server.invoke("one", [1, 2, 3]).json()
        for name in NAMES[1:]:
            assert server.load(name).status_code == 200
        described = {name: server.describe(name) for name in NAMES}
        for each in described.values():
            assert each["bytes"] == described["one"]["bytes"]
            assert each["sharedBytes"] > 0.9 * each["bytes"]
        saved = [line for line in server.http.get("/metrics").text.splitlines() if line.startswith("berth_saved_bytes")]
        assert [float(line.split()[1]) for line in saved if "device" in line] == [2.0 * described["one"]["sharedBytes"]]
        assert server.invoke("two", "write").json() == "done"
        assert server.invoke("two", [1, 2, 3]).json() != expected
        assert [server.invoke(name, [1, 2, 3]).json() for name in ("one", "three")] == [expected] * 2
        assert server.unload("one").status_code == 200
        until(lambda: server.describe("three")["sharedBytes"] > 0)
        assert server.invoke("three", [1, 2, 3]).json() == expected
