"""Bytes of tokenizers are bytes of their models: booked, shared, told; those of no model are in nobody's way."""

from __future__ import annotations

from pathlib import Path

import pytest

from container.memory.sizes import checkpoint_bytes
from tests.makers import booked_bytes, tiny_bert
from tests.server import Server, running, write_handler

TEXT = {"inputs": "a b c"}
BALLAST = """
from container.handler import Handler

class Ballast(Handler):
    def load(self, model_dir, context):
        self.weights_bytes = context.options["bytes"]

    def predict(self, batch):
        return batch
"""


def metric(server: Server, name: str) -> float:
    lines = server.http.get("/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


def used(server: Server) -> float:
    return metric(server, 'berth_memory_bytes{kind="used",tier="device"}')


def tokenizers(server: Server) -> tuple[float, float]:
    """Return the bytes of those that models have, and of those that none has."""
    return tuple(metric(server, f'berth_tokenizer_bytes{{kind="{kind}"}}') for kind in ("used", "idle"))  # type: ignore[return-value]


def test_models_of_one_vocabulary_have_one_tokenizer_and_a_limit_of_what_is_told_holds_them_all(tmp_path: Path) -> None:
    weights = checkpoint_bytes(tiny_bert(tmp_path / "one"))
    words = booked_bytes(tmp_path / "one") - weights
    names = ["a", "b", "c"]
    with running(tmp_path / "wide") as server:
        for number, name in enumerate(names):
            tiny_bert(server.folder(name), number)
            server.load(name).raise_for_status()
        described = [server.describe(name) for name in names]
        assert [(one["bytes"], one["tokenizerBytes"]) for one in described] == [(weights + words, words)] * 3
        assert [one["sharedBytes"] for one in described] == [words] * 3
        assert (used(server), tokenizers(server)) == (3 * weights + words, (words, 0))
        freed = [server.unload(name).json()["freedBytes"] for name in names]
        assert freed == [weights, weights, weights + words], "the last one takes it along"
        assert (used(server), tokenizers(server)) == (0, (0, words))
    told = sum(one["bytes"] for one in described)
    with running(tmp_path / "tight", BERTH_MEMORY_LIMIT=str(told), BERTH_SHARING="off") as server:
        for number, name in enumerate(names):
            tiny_bert(server.folder(name), number)
            server.load(name).raise_for_status()
        assert [server.describe(name)["tier"] for name in names] == ["device"] * 3
        assert [server.describe(name)["sharedBytes"] for name in names] == [0] * 3
        assert (used(server), tokenizers(server)) == (told, (3 * words, 0))


@pytest.mark.parametrize("eviction", ["sink", "platform"])
def test_a_tokenizer_of_no_model_gives_way_and_nothing_sinks_or_is_refused(tmp_path: Path, eviction: str) -> None:
    one = booked_bytes(tiny_bert(tmp_path / "one"))
    words = one - checkpoint_bytes(tmp_path / "one")
    with running(tmp_path, BERTH_MEMORY_LIMIT=str(one + 1000), BERTH_EVICTION=eviction) as server:
        tiny_bert(server.folder("a"))
        right = [server.load("a").raise_for_status(), server.invoke("a", TEXT).raise_for_status().json()][1]
        server.unload("a").raise_for_status()
        assert tokenizers(server) == (0, words)
        write_handler(server.folder("stays"), BALLAST, options={"bytes": 400})
        server.load("stays").raise_for_status()
        assert tokenizers(server) == (0, words), "there is room for both"
        server.load("a").raise_for_status()
        assert tokenizers(server) == (words, 0), "it was there, and is taken up again"
        server.unload("a").raise_for_status()
        write_handler(server.folder("large"), BALLAST, options={"bytes": one + 500})
        server.load("large").raise_for_status()
        assert (used(server), tokenizers(server)) == (one + 900, (0, 0))
        assert {server.describe(name)["tier"] for name in ("stays", "large")} == {"device"}
        server.unload("large").raise_for_status()
        server.load("a").raise_for_status()
        assert server.invoke("a", TEXT).json() == right
        assert metric(server, "berth_demotions_total") == 0


def test_under_a_device_they_lie_in_ram_beside_its_limit(tmp_path: Path) -> None:
    one = tiny_bert(tmp_path / "one")
    words = booked_bytes(one) - checkpoint_bytes(one)
    with running(tmp_path, BERTH_DEVICE="sim:1GiB@1GB/s") as server:
        for number, name in enumerate("ab"):
            tiny_bert(server.folder(name), number)
            server.load(name).raise_for_status()
        described = server.describe("a")
        assert (described["sharedBytes"], described["tokenizerBytes"]) == (0, words)
        assert (used(server), tokenizers(server)) == (2 * described["bytes"], (words, 0))
        for name in "ab":
            server.unload(name).raise_for_status()
        assert tokenizers(server) == (0, words)
