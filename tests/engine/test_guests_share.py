"""Authors' models in the process that guests share keep equal weights once.

A real engine without its process, a real child.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from container.engine.cuts import BadCut, Cuts
from container.engine.main import Parts
from container.errors import BadRequest
from container.memory import probe
from container.memory.ledger import Segment, Tier
from container.payload import Payload
from container.wire import messages as m
from tests.engine.test_children import until
from tests.parts import run_with_guests, write_archive

#: WIDTH x WIDTH numbers a layer; those of ``trunk`` are by SEED, the head is by HEAD. Writes into itself when told to.
NET = """
import time

import torch

WIDTH, LAYERS, SEED, HEAD = 512, 4, 0, 0

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(SEED)
        self.trunk = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))
        self.norm = torch.nn.BatchNorm1d(WIDTH)
        self.register_buffer("table", torch.randn(WIDTH, 64))
        torch.manual_seed(100 + HEAD)
        self.head = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.tied = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.tied.weight = self.head.weight

    def forward(self, x):
        for layer in self.trunk:
            x = torch.relu(layer(x))
        return self.head(self.norm(x)) @ self.table

def model_fn(model_dir):
    return Net().train()

def predict_fn(data, model):
    if data == "write":
        with torch.no_grad():
            model.trunk[1].weight[3] = 7.0
            model.head.weight.mul_(2)
        return bool(torch.equal(model.tied.weight, model.head.weight))
    if data == "tied":
        return model.tied.weight is model.head.weight
    if data == "statistics":
        return [model.norm.num_batches_tracked.item(), model.norm.running_mean.sum().item()]
    if data == "slow":
        time.sleep(1.5)
    with torch.no_grad():
        return model(torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH)).tolist()
"""
LAYER = 512 * 512 * 4
TABLE = 512 * 64 * 4
#: What is too small to be shared: batch norm's weight, bias and two statistics, and a count.
SMALL = 4 * 512 * 4 + 8
BYTES = 5 * LAYER + TABLE + SMALL


def run(tmp_path: Path, scenario: Callable[[Parts], Awaitable[None]], **environ: str) -> None:
    run_with_guests(tmp_path, scenario, 150, **environ)


def write(tmp_path: Path, name: str, code: str = NET, **berth: Any) -> Path:
    return write_archive(tmp_path, name, code, berth)


async def load(parts: Parts, *folders: Path) -> None:
    for folder in folders:
        await parts.engine.load(m.Load(1, folder.parent.name, str(folder)))
        await parts.residence.joined(folder.parent.name)


async def ask(parts: Parts, name: str, data: Any = None) -> Any:
    """Return what ``name`` answers: a value, or a failure's code."""
    answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    request = m.Invoke(1, name, Payload(json.dumps(data).encode()), time.monotonic() + 60)
    parts.engine.invoke(request, answered.set_result)
    result = (await answered).result
    return json.loads(result.body) if isinstance(result, Payload) else result.code


async def sink(parts: Parts, name: str) -> None:
    while parts.models.known(name).held:
        await asyncio.sleep(0.001)
    await parts.residence.sink(name)


def used(parts: Parts) -> int:
    """Return the bytes in use; all laws of the ledger hold."""
    parts.keeper.ledger.check()
    sums = parts.keeper.ledger.figures(Tier.DEVICE)
    assert (sums.reserved, sums.leaving, sums.over) == (0, 0, 0), sums
    return sums.used


async def shared(parts: Parts, name: str) -> int:
    return (await parts.engine.describe(m.Describe(1, name))).shared_bytes


def process_bytes(parts: Parts) -> int:
    assert parts.guests.pid is not None
    return probe.process_bytes(parts.guests.pid)


def test_twenty_copies_of_an_authors_model_take_the_bytes_of_one_and_answer_the_same(tmp_path: Path) -> None:
    code = NET.replace("WIDTH, LAYERS, SEED, HEAD = 512, 4", "WIDTH, LAYERS, SEED, HEAD = 1024, 4")
    folders = [write(tmp_path, f"copy-{number}", code) for number in range(20)]

    async def scenario(parts: Parts) -> None:
        await load(parts, folders[0])
        one, expected = used(parts), await ask(parts, "copy-0")
        assert one > 20 << 20
        before = process_bytes(parts)
        await load(parts, *folders[1:])
        answers = [await ask(parts, folder.parent.name) for folder in folders[1:]]
        assert answers == [expected] * 19
        assert used(parts) < 1.05 * one
        assert process_bytes(parts) - before < 0.5 * one
        assert await shared(parts, "copy-7") > 0.98 * one
        assert (await parts.engine.describe(m.Describe(1, "copy-7"))).bytes == one
        several, saved = parts.keeper.ledger.account(Tier.DEVICE).shared()
        assert (several > 0.98 * one, saved > 18 * one) == (True, True)

    run(tmp_path, scenario, BERTH_MEMORY_LIMIT="64MiB")


def test_what_an_authors_code_writes_into_its_weights_changes_its_own_answers_only(tmp_path: Path) -> None:
    folders = [write(tmp_path, name) for name in ("writes", "reads", "late")]

    async def scenario(parts: Parts) -> None:
        await load(parts, *folders[:2])
        assert used(parts) == BYTES + SMALL
        expected = await ask(parts, "reads")
        assert await ask(parts, "writes", "write") is True, "tied weights are still tied"
        assert await ask(parts, "writes") != expected
        assert await ask(parts, "reads", "tied") is True
        await load(parts, folders[2])
        assert used(parts) == BYTES + 2 * SMALL
        assert await ask(parts, "late") == expected == await ask(parts, "reads")

    run(tmp_path, scenario)


def test_statistics_of_a_batch_norm_that_learns_stay_each_models_own(tmp_path: Path) -> None:
    folders = [write(tmp_path, name, NET.replace("512, 4, 0", "2048, 1, 0")) for name in "ab"]

    async def scenario(parts: Parts) -> None:
        await load(parts, folders[0])
        await ask(parts, "a")
        learnt = await ask(parts, "a", "statistics")
        await load(parts, folders[1])
        assert await shared(parts, "b") > 0
        assert await ask(parts, "b", "statistics") == [0, 0]
        await ask(parts, "b")
        assert await ask(parts, "b", "statistics") == learnt
        for _ in range(3):
            await ask(parts, "b")
        assert await ask(parts, "a", "statistics") == learnt
        assert (await ask(parts, "b", "statistics"))[0] == 4

    run(tmp_path, scenario)


def test_fine_tunes_of_authors_share_their_trunk(tmp_path: Path) -> None:
    tunes = [
        write(tmp_path, f"tune-{head}", NET.replace("HEAD = 512, 4, 0, 0", f"HEAD = 512, 4, 0, {head}"))
        for head in (1, 2, 3)
    ]

    async def scenario(parts: Parts) -> None:
        await load(parts, tunes[0])
        first = await ask(parts, "tune-1")
        await load(parts, *tunes[1:])
        assert used(parts) == 4 * LAYER + TABLE + 3 * (LAYER + SMALL)
        assert await shared(parts, "tune-2") == 4 * LAYER + TABLE
        assert await ask(parts, "tune-1") == first
        assert await ask(parts, "tune-2") != first

    run(tmp_path, scenario)


@pytest.mark.parametrize("why", ["off", "salt", "own process", "another device"])
def test_where_sharing_is_not_wanted_or_cannot_be_every_copy_has_its_own(why: str, tmp_path: Path) -> None:
    each = {"salt": lambda name: {"salt": name}, "own process": lambda name: {"isolation": "own"}}.get(
        why, lambda name: {}
    )
    folders = [write(tmp_path, name, **each(name)) for name in "ab"]
    environ = {"off": {"BERTH_SHARING": "off"}, "another device": {"BERTH_DEVICE": "sim:64MiB@10GB/s"}}.get(why, {})

    async def scenario(parts: Parts) -> None:
        await load(parts, *folders)
        assert [await shared(parts, name) for name in "ab"] == [0, 0]
        assert used(parts) == 2 * BYTES if why != "own process" else used(parts) > 2 * BYTES

    run(tmp_path, scenario, **environ)


def test_copies_sink_rise_and_are_unloaded_without_the_others_noticing(tmp_path: Path) -> None:
    folders = [write(tmp_path, name) for name in "abc"]

    async def scenario(parts: Parts) -> None:
        await load(parts, *folders)
        expected = await ask(parts, "b")
        assert used(parts) == BYTES + 2 * SMALL
        await sink(parts, "a")
        assert used(parts) == BYTES + SMALL
        assert await ask(parts, "b") == expected
        assert await ask(parts, "a") == expected
        await until(lambda: used(parts) == BYTES + 2 * SMALL)
        freed = (await parts.engine.unload(m.Unload(1, "a"))).freed_bytes
        assert freed == SMALL
        before = process_bytes(parts)
        await sink(parts, "b")
        assert await ask(parts, "c") == expected
        await sink(parts, "c")
        assert used(parts) == 0
        assert before - process_bytes(parts) > 0.9 * (BYTES - SMALL)
        assert [await ask(parts, name) for name in "bc"] == [expected] * 2
        await until(lambda: used(parts) == BYTES + SMALL)

    run(tmp_path, scenario)


def test_copies_whose_process_died_rise_again_and_are_shared_anew(tmp_path: Path) -> None:
    folders = [write(tmp_path, name) for name in "abc"]

    async def scenario(parts: Parts) -> None:
        await load(parts, *folders)
        expected, pid = await ask(parts, "a"), parts.guests.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: parts.guests.pid not in (None, pid) and used(parts) == 0)
        for name in "abc":
            assert await ask(parts, name) == expected
        await until(lambda: used(parts) == BYTES + 2 * SMALL)
        assert {segment for name in "abc" for segment in parts.keeper.ledger.segments(name)} == {
            "a",
            "b",
            "c",
            "guests:2:1",
        }

    run(tmp_path, scenario)


def test_a_model_that_keeps_arrays_of_its_weights_is_booked_with_them(tmp_path: Path) -> None:
    kept = NET.replace(
        "return Net().train()",
        "net = Net().train()\n    net.kept = [p.detach().numpy() for p in net.trunk.parameters()]\n    return net",
    )
    folders = [write(tmp_path, name, kept) for name in "ab"]

    async def scenario(parts: Parts) -> None:
        await load(parts, *folders)
        assert used(parts) == 2 * (4 * LAYER + SMALL) + LAYER + TABLE
        assert await ask(parts, "a") == await ask(parts, "b")

    run(tmp_path, scenario)


def test_opaque_models_of_authors_are_left_alone(tmp_path: Path) -> None:
    opaque = NET.replace(
        "return Net().train()",
        'net = Net().train()\n    net.register_buffer("eye", torch.eye(4).to_sparse())\n    return net',
    )
    folders = [write(tmp_path, name, opaque) for name in "ab"]

    async def scenario(parts: Parts) -> None:
        await load(parts, *folders)
        assert used(parts) >= 2 * BYTES

    run(tmp_path, scenario)


def test_a_model_that_computes_when_a_copy_arrives_is_not_disturbed_and_is_shared_once_it_rests(tmp_path: Path) -> None:
    folders = [write(tmp_path, name) for name in ("slow", "copy")]

    async def scenario(parts: Parts) -> None:
        await load(parts, folders[0])
        expected = await ask(parts, "slow")
        asking = asyncio.create_task(ask(parts, "slow", "slow"))
        await asyncio.sleep(0.2)
        await load(parts, folders[1])
        assert await shared(parts, "slow") == 0
        assert await ask(parts, "copy") == expected
        assert not asking.done()
        assert used(parts) == 2 * BYTES
        assert await asking == expected
        await until(lambda: used(parts) == BYTES + SMALL)
        assert [await ask(parts, name) for name in ("slow", "copy")] == [expected] * 2

    run(tmp_path, scenario)


def test_nobody_but_the_engine_asks_what_models_share(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        with pytest.raises(BadRequest, match="by the engine"):
            await parts.engine.share(m.Share(1, "any"))

    run(tmp_path, scenario)


def test_segments_are_of_one_life_of_the_child_and_name_parts_once() -> None:
    cuts = Cuts("guests:3")
    told = m.Shared(1, [m.Cut("a", 10, [1]), m.Cut("b", 0, [1]), m.Cut("gone", 0, [1])], {1: 90})
    found = cuts.take(told, {"a": 100, "b": 90})
    assert found == {
        "a": [Segment("guests:3:1", 90), Segment("a", 10)],
        "b": [Segment("guests:3:1", 90), Segment("b", 0)],
    }
    later = cuts.take(m.Shared(2, [m.Cut("tune", 50, [1])], {1: 90}), {"tune": 100})
    assert later == {"tune": [Segment("guests:3:1", 90), Segment("tune", 50)]}


@pytest.mark.parametrize(
    "told",
    [
        m.Shared(1, [m.Cut("a", -1, [1])], {1: 90}),
        m.Shared(1, [m.Cut("a", 10, [1])], {1: -90}),
        m.Shared(1, [m.Cut("a", 11, [1])], {1: 90}),
        m.Shared(1, [m.Cut("a", 10, [2])], {1: 90}),
        m.Shared(1, [m.Cut("a", 10, [1, 1])], {1: 45}),
        m.Shared(1, [m.Cut("a", 0, [7])], {7: 41}),
    ],
)
def test_what_a_child_cannot_have_is_not_booked(told: m.Shared) -> None:
    cuts = Cuts("guests:1")
    cuts.take(m.Shared(0, [], {7: 40}), {})
    with pytest.raises(BadCut):
        cuts.take(told, {"a": 100})
