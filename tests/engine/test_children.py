"""What the engine asks of a host child is done there, or undone: a real engine without its process, a real child."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from container.engine.lifecycle import Residency
from container.engine.main import Parts
from container.payload import Payload
from container.wire import messages as m
from tests.parts import run_with_guests
from tests.server import write_handler

#: Takes its time to load once there is a file beside it, and notes each load that it has begun and ended.
SLOW = """
import time
from pathlib import Path
from container.handler import Handler

class Slow(Handler):
    def load(self, model_dir, context):
        with (Path(model_dir).parent / "loads").open("a") as notes:
            print("begun", file=notes, flush=True)
            if (Path(model_dir).parent / "slowly").exists():
                time.sleep(1.5)
            print("ended", file=notes, flush=True)
        self.weights_bytes = 1000

    def predict(self, batch):
        return batch
"""


def run(tmp_path: Path, scenario: Callable[[Parts], Awaitable[None]]) -> None:
    run_with_guests(tmp_path, scenario, 60)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def rise_for_nobody(parts: Parts, folder: Path, name: str) -> None:
    """Leave ``name``, which is up, in the middle of a rise whose only caller has hung up."""
    await parts.residence.sink(name)
    (folder.parent / "slowly").touch()
    (folder.parent / "loads").write_text("")

    def respond(reply: m.Reply) -> None:
        raise AssertionError(f"nobody waits for {reply}")

    parts.engine.invoke(m.Invoke(1, name, Payload(b"7"), time.monotonic() + 30), respond)
    await until(lambda: (folder.parent / "loads").read_text() == "begun\n")
    parts.engine.cancel(1, respond)


async def answer(parts: Parts, name: str) -> m.Reply:
    answered: asyncio.Future[m.Reply] = asyncio.get_running_loop().create_future()
    parts.engine.invoke(m.Invoke(1, name, Payload(b"7"), time.monotonic() + 30), answered.set_result)
    return await answered


def test_a_guest_unloaded_in_the_middle_of_its_rise_leaves_nothing_in_the_child(tmp_path: Path) -> None:
    """The child cannot stop a load half-way, and kept what came of it, which then was in the way of the next."""
    folder = write_handler(tmp_path / "base" / "models" / "slow" / "model", SLOW)

    async def scenario(parts: Parts) -> None:
        await parts.engine.load(m.Load(1, "slow", str(folder)))
        await rise_for_nobody(parts, folder, "slow")
        await parts.engine.unload(m.Unload(1, "slow"))
        assert (folder.parent / "loads").read_text() == "begun\nended\n", "gone, and its code still loads"
        (folder.parent / "slowly").unlink()
        await parts.engine.load(m.Load(1, "slow", str(folder)))
        assert await answer(parts, "slow") == m.Answer(1, Payload(b"7", "application/json"))

    run(tmp_path, scenario)


def test_a_process_of_its_own_is_ended_in_the_middle_of_a_rise_that_nobody_wants(tmp_path: Path) -> None:
    folder = write_handler(tmp_path / "base" / "models" / "slow" / "model", SLOW, isolation="own")

    async def scenario(parts: Parts) -> None:
        await parts.engine.load(m.Load(1, "slow", str(folder)))
        await rise_for_nobody(parts, folder, "slow")
        await parts.engine.unload(m.Unload(1, "slow"))
        assert (folder.parent / "loads").read_text() == "begun\n", "it was waited for"

    run(tmp_path, scenario)


def test_a_guest_whose_abandoned_rise_ends_its_process_is_unloaded_and_loads_again(tmp_path: Path) -> None:
    folder = write_handler(tmp_path / "base" / "models" / "slow" / "model", SLOW)

    async def scenario(parts: Parts) -> None:
        await parts.engine.load(m.Load(1, "slow", str(folder)))
        await rise_for_nobody(parts, folder, "slow")
        unloading = asyncio.create_task(parts.engine.unload(m.Unload(1, "slow")))
        await asyncio.sleep(0.1)
        assert parts.guests.pid is not None
        os.kill(parts.guests.pid, signal.SIGKILL)
        await unloading
        (folder.parent / "slowly").unlink()
        await parts.engine.load(m.Load(1, "slow", str(folder)))
        model = parts.models.get("slow")
        assert model is not None
        assert model.residency is Residency.DEVICE

    run(tmp_path, scenario)
