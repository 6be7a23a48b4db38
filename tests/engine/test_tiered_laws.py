"""The ledger and what lies behind it, moved by the real residence over a small device: they always say the same."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from safetensors.torch import save_file

from container.archive.manifest import Manifest
from container.engine.children import ChildRunner
from container.engine.lifecycle import Life, Residency
from container.engine.models import Model, Registry
from container.engine.runners import Up
from container.engine.tier_runner import TierRunner
from container.engine.tiered import TieredResidence
from container.errors import LoadFailed, MemoryBusy, Restarting, ServingError
from container.handler import Handler
from container.memory import prints, regions
from container.memory.arena import Event
from container.memory.blocks import Blocks
from container.memory.device import Piece
from container.memory.keeper import Keeper
from container.memory.ledger import Ledger, Segment, Tier
from container.memory.regions import DeviceRegion, HostRegion
from container.memory.sim import SimDevice
from container.memory.tokenizers import Tokenizers
from container.model import moving, opening
from container.model.moving import Adopted
from container.wire import messages as m

KIB = 1 << 10
#: name -> KiB of its trunk, which those of one number share, and of what is its own.
SIZES = {
    **{f"small{number}": (0, 1) for number in range(4)},
    **{f"odd{number}": (0, 1.25) for number in range(3)},
    **{f"tuned{number}": (3, 0.5) for number in range(3)},
    "copy": (3, 0),
    "large": (0, 7),
    "lean": (0.5, 0),
    "huge": (0.5, 15.25),
}
#: Authors' models: KiB of their weights. The last one cannot be moved.
GUESTS = {"guest0": 2, "guest1": 2.5, "guest2": 6, "opaque": 3}
NAMES = sorted({*SIZES, *GUESTS})
#: Which of those that there are: drawn without a look at them, for threads make them differ from run to run.
NUMBERS = st.integers(0, 99)
ON_DEVICE, IN_RAM = 16 * KIB, 21 * KIB
LOADERS, MOVERS, READERS = ThreadPoolExecutor(2), ThreadPoolExecutor(2), ThreadPoolExecutor(2)


def tensors(name: str) -> dict[str, torch.Tensor]:
    parts = {"trunk": (0, SIZES[name][0]), "own": (1 + sorted(SIZES).index(name), SIZES[name][1])}
    return {
        part: torch.randn(int(kib * KIB / 4), generator=torch.Generator().manual_seed(seed))
        for part, (seed, kib) in parts.items()
        if kib
    }


EXPECTED = {name: tensors(name) for name in SIZES}


class Device(SimDevice):
    """One whose copies fail when told to."""

    broken = False

    def copy(self, pieces: Iterable[Piece]) -> Event:
        if self.broken:
            raise RuntimeError("CUDA error: invalid argument")
        return super().copy(pieces)


class NoLanes:
    """A dispatcher of models that nobody calls."""

    def open(self, name: str, *given: Any) -> None:
        """Nothing comes."""

    def await_lull(self) -> None:
        """It is always quiet."""

    def close(self, name: str) -> None:
        """Nothing came."""


class Runner(TierRunner):
    """The real one, of handlers that do nothing."""

    def _load(self, name: str, manifest: Manifest) -> opening.Opened:
        self.blocks.open(name, manifest, Path(manifest.model_dir))
        self.blocks.rest(name)
        return opening.Opened(Handler(), 0, {}, lambda: None)


class Guests(ChildRunner):
    """The real one with its child in this process: real modules, moved between two places in RAM."""

    def __init__(self, device: Device) -> None:
        self._here: set[str] = set()
        self._blamed: dict[str, ServingError] = {}
        self._device = device
        self.modules: dict[str, torch.nn.Linear] = {}
        self.adopted: dict[str, Adopted] = {}
        self.homes: dict[str, int] = {}

    def prepare(self, name: str, manifest: Manifest, known_bytes: int) -> list[Segment]:
        return [Segment(name, int(GUESTS[name] * KIB))]

    def _check(self) -> None:
        if self._device.broken:
            raise LoadFailed("CUDA error: invalid argument")

    async def bring_up(self, name: str, manifest: Manifest, *, keep: bool = False) -> Up:
        await asyncio.sleep(0)
        self._check()
        module = torch.nn.Linear(int(GUESTS[name] * KIB / 4), 1, bias=False)
        with torch.no_grad():
            module.weight.fill_(NAMES.index(name))
        self.homes[name] = module.weight.data_ptr()
        self.modules[name], self._here = module, self._here | {name}
        movable = keep and name != "opaque"
        if movable:
            adopted = moving.adopt_all(module, "cpu", rehearsed=True)
            assert adopted is not None
            self.adopted[name] = adopted
        return Up(self.prepare(name, manifest, 0), {}, movable=movable)

    async def _move(self, name: str, verb: str) -> m.Loaded:
        await asyncio.sleep(0)
        if name not in self._here:
            raise Restarting("its process died", retry_after_s=1.0)
        if verb != "forget":
            self._check()
        getattr(self.adopted[name], verb)()
        if verb == "forget":
            del self.adopted[name]
        return m.Loaded(0, 0)

    async def put_down(self, name: str, *, keep: bool = False) -> None:
        await asyncio.sleep(0)
        self._here.discard(name)
        self.modules.pop(name, None)
        self.adopted.pop(name, None)

    def die(self) -> list[str]:
        lost, self._here = sorted(self._here), set()
        self.modules.clear()
        self.adopted.clear()
        return lost


class Tiers(RuleBasedStateMachine):
    """Models of all sizes, some with one trunk, are loaded, called, sunk and unloaded; some moves fail.

    Among them are authors' models, whose process dies now and then.
    """

    folder: Path
    most_users = 0
    lifts = 0

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.device = Device(f"sim:{ON_DEVICE}@100GB/s")
        host, on_device = HostRegion(self.device, IN_RAM), DeviceRegion(self.device, ON_DEVICE)
        self.blocks = Blocks(self.device, host, on_device, READERS, allow_pickle=False, share=True)
        self.ledger = Ledger({Tier.DEVICE: ON_DEVICE, Tier.HOST: IN_RAM})
        self.models = Registry()
        self.keeper = Keeper(self.ledger, lambda name, tier: self.residence.sink(name, tier), "sink")
        self.runner = Runner(NoLanes(), LOADERS, MOVERS, self.blocks, lambda name: 0, Tokenizers(share=True))  # type: ignore[arg-type]
        self.guests = Guests(self.device)
        self.changed: set[str] = set()
        self.residence = TieredResidence(self.models, self.keeper, self.runner)
        self.residence.look, self.residence.is_as_it_was = self.look, self.is_as_it_was

    def teardown(self) -> None:
        for model in self.models.all():
            self.forget(model)
        assert (self.blocks._blocks, self.blocks._prints.blocks) == ({}, {})
        assert (self.guests.modules, self.guests.adopted, self.blocks.host.outside_bytes) == ({}, {}, 0)
        assert self.blocks.host.used_bytes == self.blocks.on_device.used_bytes == 0
        self.do(self.residence.trim())
        assert self.device.free_bytes() == ON_DEVICE
        self.loop.close()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    async def look(self, model: Model) -> None:
        model.manifest = Manifest("folder", str(self.folder / model.name))
        model.runner = self.guests if model.name in GUESTS else self.runner
        segments = model.runner.prepare(model.name, model.manifest, 0)
        self.changed.discard(model.name)
        if model.name in self.ledger:
            self.ledger.recut(model.name, segments)
        else:
            self.ledger.add(model.name, segments)

    async def is_as_it_was(self, model: Model) -> bool:
        await asyncio.sleep(0)
        return model.name not in self.changed

    def model(self, name: str) -> Model:
        """Return ``name``, loaded if it was not known: what rises then is a first load."""
        model = self.models.get(name)
        if model is None:
            model = Model(name, "")
            model.live("load")
            self.models.add(model)
        return model

    async def rise(self, name: str, within_s: float) -> bool:
        """Return whether ``name`` came up; a load that fails leaves nothing behind."""
        model = self.model(name)
        try:
            if model.residency is not Residency.DEVICE:
                if model.residency is Residency.HOST and name in GUESTS and name not in self.changed:
                    Tiers.lifts += 1
                await self.residence.rise(model, time.monotonic() + within_s)
        except (MemoryBusy, LoadFailed, Restarting):
            if model.life is Life.LOADING:
                self.ledger.drop(name)
                self.models.remove(name)
            return False
        if model.life is Life.LOADING:
            model.live("loaded")
            model.live("measured")
        self.ledger.touch(name, time.monotonic())
        return True

    def forget(self, model: Model) -> None:
        self.residence.unhold(model)
        self.do(self.residence.leave(model.name))
        if model.runner is not None:
            self.do(model.runner.put_down(model.name))
        self.ledger.drop(model.name)
        self.models.remove(model.name)

    @property
    def held(self) -> bool:
        return any(model.held for model in self.models.all())

    @rule(name=st.sampled_from(NAMES))
    def call(self, name: str) -> None:
        """Whatever lies where: where nothing is in use, everything that the limit allows comes up."""
        assert self.do(self.rise(name, 0.03 if self.held else 5.0)) or self.held

    @rule(names=st.sets(st.sampled_from(NAMES), min_size=2, max_size=4))
    def call_at_once(self, names: set[str]) -> None:
        async def all_of_them() -> None:
            await asyncio.gather(*(self.rise(name, 0.1) for name in sorted(names)))

        self.do(all_of_them())

    @rule(name=st.sampled_from(NAMES))
    def call_in_vain(self, name: str) -> None:
        """The copy fails, where it comes that far."""
        there = self.models.get(name)
        up = there is not None and there.residency is Residency.DEVICE
        self.device.broken = True
        came = self.do(self.rise(name, 0.03))
        self.device.broken = False
        known = name not in GUESTS
        shared = known and came and not up and all(len(self.owners(block)) > 1 for block in self.blocks_of(name))
        assert came == up or shared, "only what others have there already needs no copy"

    @rule(number=NUMBERS, tier=st.sampled_from([Tier.DEVICE, Tier.HOST]))
    def sink(self, number: int, tier: Tier) -> None:
        there = sorted(model.name for model in self.models.all() if not model.held)
        if there:
            name = there[number % len(there)]
            if name in self.ledger.used_by(tier):
                self.do(self.residence.sink(name, tier))

    @rule(number=NUMBERS)
    def begin_or_end(self, number: int) -> None:
        there = sorted(model.name for model in self.models.all() if model.residency is Residency.DEVICE)
        if there:
            model = self.models.known(there[number % len(there)])
            (self.residence.unhold if model.held else self.residence.hold)(model)

    @rule()
    def end_all(self) -> None:
        for model in self.models.all():
            self.residence.unhold(model)

    @rule(number=NUMBERS)
    def unload(self, number: int) -> None:
        there = sorted(model.name for model in self.models.all())
        if there:
            self.forget(self.models.known(there[number % len(there)]))

    @rule(name=st.sampled_from(sorted(GUESTS)), others=st.sets(st.sampled_from(NAMES), max_size=2))
    def come_and_go(self, name: str, others: set[str]) -> None:
        """A guest sinks while others rise, and rises again."""

        async def both() -> None:
            model = self.models.get(name)
            if await self.rise(name, 0.05) and (model is None or not model.held):
                await asyncio.gather(
                    self.residence.sink(name), *(self.rise(other, 0.05) for other in sorted(others - {name}))
                )
                await self.rise(name, 0.05)

        self.do(both())

    @rule()
    def guests_die(self) -> None:
        for name in self.guests.die():
            self.residence.lost(self.models.known(name))

    @rule(names=st.sets(st.sampled_from(NAMES), min_size=1, max_size=3))
    def die_while_they_rise(self, names: set[str]) -> None:
        async def both() -> None:
            rising = asyncio.gather(*(self.rise(name, 0.03) for name in sorted(names)))
            for _ in range(len(names)):
                await asyncio.sleep(0)
            for name in self.guests.die():
                self.residence.lost(self.models.known(name))
            await rising

        self.do(both())

    @rule(name=st.sampled_from(sorted(GUESTS)))
    def change(self, name: str) -> None:
        self.changed.add(name)

    @rule()
    def trim(self) -> None:
        self.do(self.residence.trim())

    def blocks_of(self, name: str) -> list[str]:
        return [segment.id for segment in self.blocks.segments(name)]

    def owners(self, block: str) -> set[str]:
        return self.blocks._blocks[block].device_users

    @invariant()
    def the_book_and_the_arenas_say_the_same(self) -> None:
        self.ledger.check()
        regions_of = {Tier.DEVICE: self.blocks.on_device, Tier.HOST: self.blocks.host}
        for tier, region in regions_of.items():
            sums = self.ledger.figures(tier)
            assert (sums.reserved, sums.leaving, sums.over) == (0, 0, 0)
            guests = sum(self.ledger.bytes(name) for name in self.ledger.used_by(tier) if name in GUESTS)
            assert region.used_bytes + guests == sums.used
            assert region.capacity <= region.limit
            if region is self.blocks.host:
                assert self.blocks.host.outside_bytes == guests
            for extent in region._extents:
                extent.arena.check()
            for block in self.blocks._blocks.values():
                users = block.device_users if tier is Tier.DEVICE else block.host_users
                booked = {name for name in self.ledger.used_by(tier) if block.id in self.blocks_of(name)}
                assert users == booked, (tier, block.id)
                Tiers.most_users = max(Tiers.most_users, len(users))
        assert self.device.free_bytes() == ON_DEVICE - self.blocks.on_device.capacity

    @invariant()
    def models_lie_where_they_say_with_their_own_weights(self) -> None:
        for model in self.models.all():
            lies = {Residency.DEVICE: Tier.DEVICE, Residency.HOST: Tier.HOST, Residency.DISK: Tier.DISK}
            assert self.ledger.tier(model.name) is lies[model.residency], model.story
            if model.name in GUESTS:
                self.check_guest(model)
            elif model.residency is Residency.DEVICE:
                views = self.blocks._models[model.name].views
                assert views.keys() == EXPECTED[model.name].keys()
                assert all(torch.equal(views[part], EXPECTED[model.name][part]) for part in views), model.name

    def check_guest(self, model: Model) -> None:
        """It is where it says, and has a copy in RAM where one is booked."""
        name, in_ram = model.name, model.name in self.ledger.used_by(Tier.HOST)
        assert (name in self.guests.modules) == (model.residency is not Residency.DISK), str(model.story)
        assert (name in self.guests.adopted) == in_ram, str(model.story)
        if name in self.guests.modules:
            weight = self.guests.modules[name].weight
            assert torch.all(weight == NAMES.index(name))
            at_home = weight.data_ptr() == self.guests.homes[name]
            assert not in_ram or at_home == (model.residency is Residency.HOST), str(model.story)


def test_thousands_of_steps_keep_the_ledger_and_the_arenas_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "STEP_BYTES", KIB)  # the device has eight extents of 2 KiB
    monkeypatch.setattr(prints, "LEAST_BYTES", 256)
    Tiers.most_users = Tiers.lifts = 0
    with tempfile.TemporaryDirectory() as folder:
        Tiers.folder = Path(folder)
        for name, weights in EXPECTED.items():
            (Tiers.folder / name).mkdir()
            save_file(weights, Tiers.folder / name / "model.safetensors")
        # Not shrunk: a rise that fails does so at its deadline, and threads take turns as they like.
        budget = settings(max_examples=100, stateful_step_count=50, deadline=None, phases=[Phase.generate])
        run_state_machine_as_test(Tiers, settings=budget)
    assert Tiers.most_users > 2, "trunks were shared"
    assert Tiers.lifts > 50
