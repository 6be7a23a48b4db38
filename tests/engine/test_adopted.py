"""Authors' models under a rehearsed device: moved between it and RAM where that can be, dropped whole where it cannot.

A real engine without its process, real host children.
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
import torch

from container.engine.lifecycle import Residency
from container.engine.main import Parts
from container.errors import BadRequest
from container.memory.ledger import Tier
from container.payload import Payload
from container.wire import messages as m
from tests.engine.test_children import until
from tests.makers import tiny_bert
from tests.parts import run_with_guests, write_archive
from tests.server import write_script

#: Counts its loads in a file beside its folder, and answers with what it is like inside.
NET = """
import functools, time
from pathlib import Path

import torch

class Net(torch.nn.Module):
    beside = None

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
        self.other.weight = self.one.weight
        self.norm = torch.nn.BatchNorm1d(64)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        self.other.bias[0] += 1
        y = self.other(self.norm(self.one(x)))
        return torch.stack([y.sum(), self.calls[0], self.other.bias[0], self.norm.running_var.sum(), self.tied()])

    def tied(self):
        return torch.tensor(float(self.one.weight is self.other.weight))

    def _apply(self, fn, recurse=True):
        made = super()._apply(fn, recurse)
        verb = "lift" if isinstance(fn, functools.partial) else "lower"
        told = Net.beside / verb
        if Net.beside and told.exists():
            kind, _, times = told.read_text().partition(" ")
            if times:
                told.write_text(f"{kind} {int(times) - 1}") if int(times) > 1 else told.unlink()
            if kind == "slow":
                time.sleep(1.0)
            elif kind == "scarce":
                raise torch.OutOfMemoryError("CUDA out of memory")
            else:
                raise RuntimeError("CUDA error: invalid argument")
        return made

def model_fn(model_dir):
    Net.beside = Path(model_dir).parent
    with (Net.beside / "loads").open("a") as loads:
        print("loaded", file=loads)
    return Net().train()

def predict_fn(data, model):
    return model(torch.tensor(data, dtype=torch.float32)).tolist()
"""
BYTES = (64 * 64 + 64 + 64) * 4 + (64 * 4) * 4 + 8 + 4
X = [[float(row + column) for column in range(64)] for row in range(4)]

#: What of authors' models cannot be moved.
OPAQUE = {
    "quantised": "torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(4, 4)))",
    "sparse": "sparse()",
    "frozen": "torch.jit.freeze(torch.jit.script(torch.nn.Sequential(torch.nn.Linear(4, 4)).eval()))",
    "not torch's": "__import__('numpy').ones((4, 4))",
}


def run(tmp_path: Path, scenario: Callable[[Parts], Awaitable[None]], **environ: str) -> None:
    device = {"BERTH_DEVICE": "sim:64MiB@10GB/s", "BERTH_HOST_MEMORY_LIMIT": "64MiB"}
    run_with_guests(tmp_path, scenario, 100, **{**device, **environ})


def write(tmp_path: Path, name: str, code: str = NET, **berth: Any) -> Path:
    """Write an archive as old as if it had been downloaded a minute ago."""
    return aged(write_archive(tmp_path, name, code, berth))


def aged(folder: Path) -> Path:
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 60, time.time() - 60))
    return folder


def loads(folder: Path) -> int:
    return (folder.parent / "loads").read_text().count("loaded")


async def load(parts: Parts, *folders: Path) -> None:
    for folder in folders:
        await parts.engine.load(m.Load(1, folder.parent.name, str(folder)))


async def ask(parts: Parts, name: str, data: Any = X, within_s: float = 30.0) -> Any:
    """Return what ``name`` answers: a value, or a failure's code."""
    answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    request = m.Invoke(1, name, Payload(json.dumps(data).encode()), time.monotonic() + within_s)
    parts.engine.invoke(request, answered.set_result)
    result = (await answered).result
    return json.loads(result.body) if isinstance(result, Payload) else result.code


async def sink(parts: Parts, name: str, tier: Tier = Tier.DEVICE) -> str:
    """Have ``name`` sink once it is idle; return where it is then, as GET /models/{name} tells it."""
    while parts.models.known(name).held:
        await asyncio.sleep(0.001)
    await parts.residence.sink(name, tier)
    return (await parts.engine.describe(m.Describe(1, name))).tier


def booked(parts: Parts) -> dict[str, int]:
    """Return the bytes that are used, by tier. None are on their way, all laws of the ledger hold, the arena knows."""
    parts.keeper.ledger.check()
    found = {}
    for tier in parts.keeper.ledger.tiers:
        sums = parts.keeper.ledger.figures(tier)
        assert (sums.reserved, sums.leaving, sums.over) == (0, 0, 0), (tier, sums)
        found[tier.value] = sums.used
    blocks = parts._lanes.blocks  # type: ignore[attr-defined]
    assert blocks.host.outside_bytes + blocks.host.used_bytes == found["host"]
    return {tier: used for tier, used in found.items() if used}


def test_a_model_that_is_moved_loads_once_and_answers_as_if_it_had_never_sunk(tmp_path: Path) -> None:
    """Counting buffers, a batch norm that learns, tied weights, a parameter that is written to in place."""
    moved, still = write(tmp_path, "moved"), write(tmp_path, "still")

    async def scenario(parts: Parts) -> None:
        await load(parts, moved, still)
        assert booked(parts) == {"device": 2 * BYTES, "host": 2 * BYTES}
        for step in range(20):
            expected = await ask(parts, "still")
            assert await ask(parts, "moved") == expected
            assert expected[1] == step + 1
            assert expected[4] == 1
            assert await sink(parts, "moved") == "host"
            assert booked(parts) == {"device": BYTES, "host": 2 * BYTES}
        assert (loads(moved), loads(still)) == (1, 1)
        assert parts.residence.promotions == 2 + 19

    run(tmp_path, scenario)


def test_torchscript_is_moved_with_its_buffers(tmp_path: Path) -> None:
    code = NET.replace("return Net().train()", 'return torch.jit.load(str(Path(model_dir) / "model.pt"))')
    code = code.replace("return model(torch", "return model(torch").replace(").tolist()", ").mean().tolist()")
    folder = write(tmp_path, "script", code)
    torch.jit.save(torch.jit.script(torch.nn.BatchNorm1d(64).train()), str(folder / "model.pt"))  # type: ignore[no-untyped-call]
    aged(folder)
    seen = "{name: value.sum().item() for name, value in model.state_dict().items()}"
    write_script(folder, code.replace("return model(torch", f"return {seen} if data == 0 else model(torch"))
    aged(folder)

    async def scenario(parts: Parts) -> None:
        await load(parts, folder)
        for step in range(3):
            assert abs(await ask(parts, "script")) < 1e-5
            before = await ask(parts, "script", 0)
            assert before["num_batches_tracked"] == step + 1
            assert await sink(parts, "script") == "host"
            assert await ask(parts, "script", 0) == before
        assert loads(folder) == 1

    run(tmp_path, scenario)


@pytest.mark.parametrize("kind", OPAQUE)
def test_what_cannot_be_moved_is_dropped_whole_and_loaded_again(kind: str, tmp_path: Path) -> None:
    sparse = """
def sparse():
    module = torch.nn.Module()
    module.register_buffer("eye", torch.eye(4).to_sparse())
    return module
"""
    code = NET.replace("return Net().train()", f"return {OPAQUE[kind]}") + sparse
    folder = write(tmp_path, "opaque", code.replace("return model(", "return 7 if model is not None else ("))

    async def scenario(parts: Parts) -> None:
        await load(parts, folder)
        assert booked(parts).keys() <= {"device"}, "frozen weights are seen by nobody"
        assert await ask(parts, "opaque") == 7
        assert await sink(parts, "opaque") == "disk"
        assert booked(parts) == {}
        assert await ask(parts, "opaque") == 7
        assert loads(folder) == 2

    run(tmp_path, scenario)


def test_a_model_that_ram_has_no_room_for_is_dropped_whole(tmp_path: Path) -> None:
    folder = write(tmp_path, "large")

    async def scenario(parts: Parts) -> None:
        await load(parts, folder)
        first = await ask(parts, "large")
        assert booked(parts) == {"device": BYTES}
        assert await sink(parts, "large") == "disk"
        assert await ask(parts, "large") == first, "what it counted is gone"
        assert loads(folder) == 2

    run(tmp_path, scenario, BERTH_HOST_MEMORY_LIMIT=str(BYTES - 1))


@pytest.mark.parametrize("why", ["pinned", "platform"])
def test_what_never_sinks_takes_no_room_in_ram(why: str, tmp_path: Path) -> None:
    folder = write(tmp_path, "stays", pin=why == "pinned")
    policy = {"BERTH_EVICTION": "platform"} if why == "platform" else {}

    async def scenario(parts: Parts) -> None:
        await load(parts, folder)
        assert booked(parts) == {"device": BYTES}

    run(tmp_path, scenario, **policy)


def test_nobody_but_the_engine_moves_models(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        with pytest.raises(BadRequest, match="by the engine"):
            await parts.engine.move(m.Move(1, "any", "lower"))

    run(tmp_path, scenario)


def test_where_ram_gets_scarce_copies_go_first_and_then_models_that_lie_there(tmp_path: Path) -> None:
    one, two = write(tmp_path, "one"), write(tmp_path, "two")

    async def scenario(parts: Parts) -> None:
        ledger = parts.keeper.ledger
        await load(parts, one)
        await ask(parts, "one")
        await load(parts, two)
        assert (ledger.used_by(Tier.DEVICE), ledger.used_by(Tier.HOST)) == ({"one", "two"}, {"two"})
        assert booked(parts) == {"device": 2 * BYTES, "host": BYTES}
        assert (await ask(parts, "one"))[1] == 2, "it stays up when its copy is forgotten"
        assert await sink(parts, "one") == "disk"
        assert await sink(parts, "two") == "host"
        assert (await ask(parts, "one"))[1] == 1
        assert ledger.used_by(Tier.HOST) == {"one"}, "the other gave its place up"
        assert booked(parts) == {"device": BYTES, "host": BYTES}
        assert (await parts.engine.describe(m.Describe(1, "two"))).tier == "disk"
        assert (await ask(parts, "two"))[1] == 1
        assert (loads(one), loads(two)) == (2, 2)

    run(tmp_path, scenario, BERTH_HOST_MEMORY_LIMIT=str(BYTES * 3 // 2))


def test_a_process_that_dies_takes_what_lay_in_ram_and_the_next_call_loads_it(tmp_path: Path) -> None:
    low, up = write(tmp_path, "low"), write(tmp_path, "up")

    async def scenario(parts: Parts) -> None:
        await load(parts, low, up)
        for name in ("low", "up"):
            await ask(parts, name)
        assert await sink(parts, "low") == "host"
        pid = parts.guests.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert (await ask(parts, "low"))[1] == 1, "whether or not the death has been noticed by then"
        await until(lambda: parts.guests.pid not in (None, pid))
        assert (await ask(parts, "up"))[1] == 1
        assert booked(parts) == {"device": 2 * BYTES, "host": 2 * BYTES}
        assert await sink(parts, "up") == await sink(parts, "low") == "host"
        os.kill(parts.guests.pid or 0, signal.SIGKILL)
        await until(lambda: parts.models.known("low").residency is Residency.DISK)
        assert booked(parts) == {}
        assert [(await ask(parts, name))[1] for name in ("low", "up")] == [1, 1]

    run(tmp_path, scenario)


@pytest.mark.parametrize("where", ["device", "host"])
def test_an_unload_gives_the_bytes_of_both_tiers_back(where: str, tmp_path: Path) -> None:
    folder = write(tmp_path, "gone")

    async def scenario(parts: Parts) -> None:
        for _ in range(2):
            await load(parts, folder)
            await ask(parts, "gone")
            if where == "host":
                assert await sink(parts, "gone") == "host"
            freed = (await parts.engine.unload(m.Unload(1, "gone"))).freed_bytes
            assert freed == (2 if where == "device" else 1) * BYTES
            assert booked(parts) == {}
            assert parts.models.get("gone") is None

    run(tmp_path, scenario)


def test_a_lift_that_runs_out_of_memory_is_tried_again_once_what_is_idle_has_sunk(tmp_path: Path) -> None:
    folder, idle = write(tmp_path, "net"), write(tmp_path, "idle")

    async def scenario(parts: Parts) -> None:
        await load(parts, folder, idle)
        await ask(parts, "net")
        assert await sink(parts, "net") == "host"
        (folder.parent / "lift").write_text("scarce 1")
        assert (await ask(parts, "net"))[1] == 2
        assert (await parts.engine.describe(m.Describe(1, "idle"))).tier == "host"
        assert await sink(parts, "net") == "host"
        (folder.parent / "lift").write_text("scarce")
        assert await ask(parts, "net") == "memory.exhausted"
        assert (await parts.engine.describe(m.Describe(1, "net"))).tier == "host"
        assert booked(parts) == {"host": 2 * BYTES}
        (folder.parent / "lift").unlink()
        assert (await ask(parts, "net"))[1] == 3
        assert loads(folder) == 1

    run(tmp_path, scenario)


def test_a_lowering_that_fails_is_a_dropping(tmp_path: Path) -> None:
    folder = write(tmp_path, "net")

    async def scenario(parts: Parts) -> None:
        await load(parts, folder)
        (folder.parent / "lower").write_text("broken")
        assert await sink(parts, "net") == "disk"
        assert booked(parts) == {}
        (folder.parent / "lower").unlink()
        assert (await ask(parts, "net"))[1] == 1
        assert loads(folder) == 2

    run(tmp_path, scenario)


def test_a_lift_that_fails_and_cannot_be_undone_is_a_dropping(tmp_path: Path) -> None:
    folder = write(tmp_path, "net")

    async def scenario(parts: Parts) -> None:
        await load(parts, folder)
        assert await sink(parts, "net") == "host"
        for verb in ("lift", "lower"):
            (folder.parent / verb).write_text("broken")
        assert await ask(parts, "net") == "model.load_failed"
        assert booked(parts) == {}
        for verb in ("lift", "lower"):
            (folder.parent / verb).unlink()
        assert (await ask(parts, "net"))[1] == 1
        assert loads(folder) == 2

    run(tmp_path, scenario)


def test_whoever_hangs_while_it_is_moved_is_seen_on_the_page(tmp_path: Path) -> None:
    folder = write(tmp_path, "net")

    async def scenario(parts: Parts) -> None:
        await load(parts, folder)
        for verb, move in (("lower", sink(parts, "net")), ("lift", ask(parts, "net"))):
            (folder.parent / verb).write_text("slow 1")
            moving = asyncio.ensure_future(move)
            await until(lambda: any(each.phase == "load" for each in parts._page.inside()))
            (inside,) = (each for each in parts._page.inside() if each.phase == "load")
            assert (inside.model, inside.pid) == ("net", parts.guests.pid)
            await moving
        assert loads(folder) == 1

    run(tmp_path, scenario)


def test_a_process_that_dies_while_it_lifts_is_told_as_a_load_and_the_model_comes_up_next_time(tmp_path: Path) -> None:
    folder = write(tmp_path, "net")

    async def scenario(parts: Parts) -> None:
        await load(parts, folder)
        assert await sink(parts, "net") == "host"
        (folder.parent / "lift").write_text("slow 1")
        asking = asyncio.ensure_future(ask(parts, "net"))
        await until(lambda: any(each.phase == "load" for each in parts._page.inside()))
        os.kill(parts.guests.pid or 0, signal.SIGKILL)
        assert await asking == "memory.exhausted", "which is what a kill from outside mostly means"
        assert booked(parts) == {}
        assert (await ask(parts, "net"))[1] == 1
        assert booked(parts) == {"device": BYTES, "host": BYTES}
        assert loads(folder) == 2

    run(tmp_path, scenario)


def test_a_model_unloaded_in_the_middle_of_a_lift_that_nobody_wants_leaves_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, "net")

    async def scenario(parts: Parts) -> None:
        await load(parts, folder)
        assert await sink(parts, "net") == "host"
        (folder.parent / "lift").write_text("slow 1")

        def respond(reply: m.Reply) -> None:
            raise AssertionError(f"nobody waits for {reply}")

        request = m.Invoke(1, "net", Payload(json.dumps(X).encode()), time.monotonic() + 30)
        parts.engine.invoke(request, respond)
        await until(lambda: any(each.phase == "load" for each in parts._page.inside()))
        parts.engine.cancel(1, respond)
        await parts.engine.unload(m.Unload(1, "net"))
        assert booked(parts) == {}
        await load(parts, folder)
        assert (await ask(parts, "net"))[1] == 1

    run(tmp_path, scenario)


def test_files_changed_under_a_model_in_ram_answer_when_it_rises(tmp_path: Path) -> None:
    folder = write(tmp_path, "net")

    async def scenario(parts: Parts) -> None:
        await load(parts, folder)
        await ask(parts, "net")
        assert await sink(parts, "net") == "host"
        write_script(folder, NET.replace("self.calls += 1", "self.calls += 100"))
        assert (await ask(parts, "net"))[1] == 100
        assert loads(folder) == 2
        assert booked(parts) == {"device": BYTES, "host": BYTES}

    run(tmp_path, scenario)


def test_a_process_of_its_own_ends_when_its_model_sinks(tmp_path: Path) -> None:
    folder = write(tmp_path, "own", isolation="own")

    async def scenario(parts: Parts) -> None:
        await load(parts, folder)
        assert (await ask(parts, "own"))[1] == 1
        assert booked(parts).keys() == {"device"}
        assert await sink(parts, "own") == "disk"
        assert (await ask(parts, "own"))[1] == 1
        assert loads(folder) == 2

    run(tmp_path, scenario, BERTH_DEVICE="sim:1GiB@10GB/s")


def test_authors_models_and_ours_share_the_room_in_ram(tmp_path: Path) -> None:
    folder = write(tmp_path, "guest")
    ours = tiny_bert(tmp_path / "base" / "models" / "ours", layers=1)

    async def scenario(parts: Parts) -> None:
        ledger = parts.keeper.ledger
        await parts.engine.load(m.Load(1, "ours", str(ours)))
        block = ledger.bytes("ours")
        ledger.set_limit(Tier.HOST, max(block, BYTES) + 100)
        await load(parts, folder)
        assert ledger.used_by(Tier.HOST) == {"guest"}
        assert (await ask(parts, "guest"))[1] == 1
        await parts.residence.leave("ours")
        assert isinstance(await ask(parts, "ours", {"inputs": "a bad cab"}), list)
        assert ledger.used_by(Tier.HOST) == {"ours"}
        assert booked(parts)["host"] == block
        assert (await ask(parts, "guest"))[1] == 2
        for name in ("ours", "guest"):
            await parts.engine.unload(m.Unload(1, name))
        assert booked(parts) == {}

    run(tmp_path, scenario)


def test_without_a_device_of_its_own_nothing_is_hooked_or_copied(tmp_path: Path) -> None:
    hooks = "len(model._forward_hooks) + len(model._forward_pre_hooks) + ('_berth_ferry' in vars(model))"
    folder = write(tmp_path, "net", NET.replace("return model(torch", f"return {hooks} if True else (torch"))

    async def scenario(parts: Parts) -> None:
        await load(parts, folder)
        assert await ask(parts, "net") == 0
        assert await sink(parts, "net") == "disk"
        assert await ask(parts, "net") == 0
        assert loads(folder) == 2

    run(tmp_path, scenario, BERTH_DEVICE="cpu")
