"""What models leave in the engine that came, answered and went: nothing, and what they did is not told by MiB.

The engine is the real one without its process: all parts, real lanes, real files.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from container.engine.main import Parts
from container.errors import BadModelPath
from container.model import watch
from container.payload import Payload
from container.settings import Settings
from container.wire import messages as m
from container.wire.server import make_run_folder
from tests.makers import tiny_bert

#: Modules whose objects are counted.
_OURS = ("container.", "handlers.")


def run(tmp_path: Path, scenario: Callable[[Parts], Awaitable[None]], **environ: str) -> None:
    folders = {"SAGEMAKER_BASE_DIR": str(tmp_path / "base"), "BERTH_STATE_DIR": str(tmp_path / "state")}
    settings = Settings.read({**folders, "SAGEMAKER_MULTI_MODEL": "true", "BERTH_DEVICE": "cpu", **environ})
    make_run_folder(settings.run_dir)
    watch.Page(settings.run_dir / "page", create=True)

    async def main() -> None:
        await asyncio.wait_for(scenario(Parts(settings, lambda message: None)), 60)

    asyncio.run(main())


async def ask(parts: Parts, name: str, *, stream: bool = False) -> m.Reply:
    answered: asyncio.Future[m.Reply] = asyncio.get_running_loop().create_future()
    payload = Payload(b'{"inputs": "a bad cab"}')
    request = m.Invoke(1, name, payload, time.monotonic() + 30, stream=stream)
    parts.engine.invoke(request, answered.set_result)
    return await answered


async def cycle(parts: Parts, folder: Path, name: str = "coming-and-going") -> None:
    await parts.engine.load(m.Load(1, name, str(folder)))
    for stream in (False, True):
        answer = await ask(parts, name, stream=stream)
        assert isinstance(answer, m.Answer)
        assert isinstance(answer.result, Payload)
    await parts.engine.describe(m.Describe(1, name))
    await parts.engine.unload(m.Unload(1, name))
    with contextlib.suppress(BadModelPath):
        await parts.engine.load(m.Load(1, name, "/nowhere"))


def ours() -> Counter[str]:
    """All objects of our own classes that the collector knows of."""
    return Counter(type(each).__qualname__ for each in gc.get_objects() if _is_ours(each))


def _is_ours(each: Any) -> bool:
    return str(type(each).__module__).startswith(_OURS)


async def more_than(before: Counter[str]) -> Counter[str]:
    """What there is beyond ``before``; a lane lets go a moment after it has told the loop."""
    for _ in range(100):
        if not ours() - before:
            break
        await asyncio.sleep(0.05)
    return ours() - before


def test_a_model_that_came_answered_and_went_or_did_not_load_leaves_no_circle_behind(tmp_path: Path) -> None:
    """Objects in a circle keep what they refer to, bodies of requests too, until Python looks for such."""
    folders = [tiny_bert(tmp_path / "base" / "models" / f"bert-{seed}", seed) for seed in range(2)]

    async def scenario(parts: Parts) -> None:
        for folder in folders:  # threads begin, modules are imported
            await cycle(parts, folder)
        gc.collect()
        gc.disable()
        try:
            before = ours()
            for number in range(10):
                await cycle(parts, folders[number % 2])
            more = await more_than(before)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            circles = Counter(type(each).__qualname__ for each in gc.garbage if _is_ours(each))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert circles == Counter()
        assert more == Counter()

    run(tmp_path, scenario)
