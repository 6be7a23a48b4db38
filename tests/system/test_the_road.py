"""What only the default door answers of the multi-model contract; what both doors answer is in tests/doors."""

from __future__ import annotations

import concurrent.futures
import time

from tests.makers import tiny_bert
from tests.server import Server, write_handler

ECHO = """
from container.handler import Handler

class Echo(Handler):
    def predict(self, batch):
        return batch
"""


def test_a_description_says_where_the_bytes_lie(server: Server) -> None:
    tiny_bert(server.folder("bert"))
    server.load("bert").raise_for_status()
    described = server.describe("bert")
    assert (described["state"], described["tier"]) == ("ready", "device")
    assert described["bytes"] >= (server.folder("bert") / "model.safetensors").stat().st_size * 0.9
    assert server.unload("bert").json()["freedBytes"] == described["bytes"]


def test_a_model_is_described_but_not_listed_while_it_loads(server: Server) -> None:
    slow = "import time\n" + ECHO + "\n    def load(self, model_dir, context):\n        time.sleep(1.5)\n"
    write_handler(server.folder("slow"), slow)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.load, "slow")
        time.sleep(0.5)
        assert server.describe("slow")["state"] == "loading"
        assert "slow" not in server.names()
        assert first.result().status_code == 200
    server.unload("slow").raise_for_status()


def test_listing_is_paged_and_a_foreign_token_is_refused(server: Server) -> None:
    names = [f"page{number}" for number in range(5)]
    for name in names:
        write_handler(server.folder(name), ECHO)
        server.load(name).raise_for_status()
    first = server.http.get("/models", params={"limit": 2}).json()
    assert [model["modelName"] for model in first["models"]] == ["page0", "page1"]
    server.unload("page0")
    second = server.http.get("/models", params={"limit": 3, "next_page_token": first["nextPageToken"]}).json()
    assert [model["modelName"] for model in second["models"]] == ["page2", "page3", "page4"]
    assert "nextPageToken" not in second
    for params in ({"next_page_token": "zz"}, {"limit": "0"}, {"limit": "x"}, {"limit": "101"}):
        refused = server.http.get("/models", params=params)
        assert (refused.status_code, refused.json()["reason"]) == (400, "request.page_token"), params
    for name in names[1:]:
        server.unload(name).raise_for_status()
