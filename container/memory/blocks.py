"""Known models under a device with memory of its own: blocks of weights in page-locked RAM and on the device.

    prepare ──> segments ──> read, open (disk to RAM) ──> lift (RAM to device) ──> lower ──> drop_host, close
                                                          one copy of one block    nothing moves: weights never change

A model is a list of views on one or more blocks. A block is written once, from its files, in the serving dtype; the
copy in RAM is the one that counts, so sinking is forgetting where the other one was. Models whose tensors are equal to
those of a block that lies in RAM, or soon will, refer to it instead of having their own: two hundred copies are one
block, fine-tunes are the first one's block and a head each; of those that load at once, whoever is first reads it.
Handlers look tensors up in ``Views`` and never notice what moves.

``segments`` and the verbs mirror ``memory/known``, which does this where there is no second tier. Verbs of one name
come from one caller at a time, those of different names from any thread, all but ``segments`` off the event loop.
Does not cover: the ledger, and who moves when (``engine/tiered``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from pathlib import Path

import torch

from container.archive.manifest import Manifest
from container.errors import BadArchive
from container.memory.arena import Event, NoRun, Slot
from container.memory.block import Block, Model, Views
from container.memory.device import Device, Piece
from container.memory.ledger import Segment, Tier
from container.memory.likeness import same_bytes
from container.memory.mapped import WeightsChanged
from container.memory.prints import Prints
from container.memory.reading import Source
from container.memory.regions import DeviceRegion, HostRegion, Place
from container.memory.tiers import lay_out, views
from container.memory.weights import CHANGED_QUIET_S, QUIET_S


class Blocks:
    """All known models of one device. readers: threads that read files."""

    def __init__(
        self, device: Device, host: HostRegion, on_device: DeviceRegion, readers: Executor, *, allow_pickle: bool,
        share: bool,
    ) -> None:  # fmt: skip
        self.device = device
        self.host = host
        self.on_device = on_device
        self._readers = readers
        self._allow_pickle = allow_pickle
        self._share = share
        self._lock = threading.Lock()
        self._models: dict[str, Model] = {}
        self._blocks: dict[str, Block] = {}
        self._prints = Prints()
        self._made = 0
        self._changed: set[str] = set()

    # ------------------------------------------------------------- disk to host

    def prepare(self, name: str, manifest: Manifest) -> list[Segment]:
        """Return the segments that ``name`` will consist of, from its files; nothing is read but samples.

        Blocks with equal samples that lie in RAM, or will, are claimed, so that they stay. Raises BadArchive.
        """
        self._prepare(name, manifest, Path(manifest.model_dir))
        return self.segments(name)

    def read(self, name: str, manifest: Manifest, *, keep: bool = True) -> None:
        """Bring what was prepared into RAM.

        keep: into the arena, else into plain memory, for the copy only. Raises BadArchive; NoRun if the arena has no
        hole for it.
        """
        for _ in range(3):
            model = self._models[name]
            try:
                self._read(name, model, keep)
            except WeightsChanged:
                self._prepare(name, manifest, model.folder)
                continue
            return
        self.close(name)
        raise BadArchive("the weight files keep changing while they are being read; finish writing, then load again")

    def open(self, name: str, manifest: Manifest, folder: Path) -> Views:
        """Return the views of the checkpoint right under ``folder``, bound to RAM until ``lift`` or ``rest``.

        Reads it where that was not done, or of another folder. Raises BadArchive.
        """
        model = self._models.get(name)
        if model is None or model.folder != folder:
            self._prepare(name, manifest, folder)
        if not self._models[name].is_read:
            try:
                self.read(name, manifest)
            except NoRun:
                self.read(name, manifest, keep=False)
        model = self._models[name]
        model.views.bytes = sum(block.layout.bytes for block, _ in model.parts)
        model.views.rebind(self._tensors(model, lambda block: block.host))
        return model.views

    def is_fresh(self, name: str) -> bool:
        """Whether the files under ``name`` are those that were read, or gone; 3 µs a file."""
        model = self._models.get(name)
        if model is None or model.source.is_fresh():
            return True
        self._changed.add(name)
        return False

    def _prepare(self, name: str, manifest: Manifest, folder: Path) -> Model:
        self.close(name)
        dtype, salt = manifest.settings.dtype, manifest.settings.salt
        quiet_s = CHANGED_QUIET_S if name in self._changed else QUIET_S
        source = Source(
            folder,
            dtype,
            self.device.compute,
            allow_pickle=self._allow_pickle,
            limit=self.on_device.limit,
            quiet_s=quiet_s,
        )
        self._changed.discard(name)
        prints = source.fingerprints(salt) if self._share else {}
        with self._lock:
            parts = self._prints.claim(prints)
            for block, _ in parts:
                block.host_users.add(name)
            taken = {tensor for _, names in parts for tensor in names}
            model = Model(source, folder, parts)
            self._own(
                name, model, {tensor: prints.get(tensor, b"") for tensor in source.layout.shapes if tensor not in taken}
            )
            self._models[name] = model
        return model

    def _own(self, name: str, model: Model, prints: Mapping[str, bytes]) -> None:
        """Give ``model`` a block of its own for the tensors ``prints``; called under the lock."""
        if not prints:
            return
        self._made += 1
        layout = lay_out({tensor: model.source.layout.shapes[tensor] for tensor in prints})
        block = Block(f"block:{self._made}", layout, {t: p for t, p in prints.items() if p}, host_users={name})
        self._blocks[block.id] = block
        self._prints.add(block)
        model.parts.append((block, {tensor: tensor for tensor in prints}))

    def _read(self, name: str, model: Model, keep: bool) -> None:
        """Compare what is to be shared, read the rest; then every block of ``model`` is in RAM."""
        for block, names in model.parts.copy():
            with block.reading:
                if block.host is None and self._may_fill(name, model.source, block, names, keep):
                    self._fill(block, model.source, keep)
                if block.host is not None and self._equal(model.source, block, names):
                    continue
            self._part(name, model, block, names)
        for block, _ in model.parts:
            if block.host is None:  # what it parted from has been made its own
                self._fill(block, model.source, keep)
        model.source.forget()
        model.is_read = True

    def _may_fill(self, name: str, source: Source, block: Block, names: Mapping[str, str], keep: bool) -> bool:
        """Whether ``source`` has all of ``block``, which is not read yet; one that does not stay is its own only."""
        if any(block.layout.shapes.get(tensor) != source.layout.shapes[tensor] for tensor in names):
            return False
        if any(tensor != other for tensor, other in names.items()) or len(names) < len(block.layout.shapes):
            return False
        if keep:
            return True
        with self._lock:
            if block.host_users == {name}:
                self._prints.discard(block)
            return block.host_users == {name}

    def _equal(self, source: Source, block: Block, names: Mapping[str, str]) -> bool:
        if source.identity in block.verified:
            return True
        assert block.host is not None
        there = views(block.host, block.layout)
        if not all(same_bytes(source.tensor(tensor), there[other]) for tensor, other in names.items()):
            return False
        block.verified.add(source.identity)
        return True

    def _part(self, name: str, model: Model, block: Block, names: Mapping[str, str]) -> None:
        """Samples were equal and the tensors are not: ``model`` has its own after all."""
        with self._lock:
            model.parts.remove((block, dict(names)))
            self._own(name, model, dict.fromkeys(names, b""))
        self._leave_host(name, [block])

    def _fill(self, block: Block, source: Source, keep: bool) -> None:
        place = self.host.take(block.layout.bytes, block.id) if keep else None
        if keep and place is None:
            raise NoRun(block.layout.bytes)
        memory = place.memory if place is not None else torch.empty(block.layout.bytes, dtype=torch.uint8)
        try:
            source.read_into(memory, block.layout, self._readers)
        except BaseException:
            if place is not None:
                self.host.give(place)
            raise
        with self._lock:
            block.host, block.place = memory, place
            block.verified.add(source.identity)

    # ---------------------------------------------------------- host to device

    def lift(self, name: str) -> None:
        """Copy the blocks of ``name`` to the device and bind its views there; returns when the bytes have arrived.

        Raises NoRun; then nothing of it is on the device.
        """
        model = self._models[name]
        blocks = sorted((block for block, _ in model.parts), key=lambda each: -each.layout.bytes)  # large holes first
        with self._lock:
            for block in blocks:
                block.device_users.add(name)
        try:
            for block in blocks:
                self._bring(block)
            tensors = self._tensors(model, lambda block: block.device.memory if block.device is not None else None)
            for block in blocks:
                assert block.arrived is not None
                block.arrived.synchronize()
        except BaseException:
            self.lower(name)
            raise
        model.views.rebind(tensors)
        for block in blocks:
            if block.place is None:  # it was in RAM for the copy only
                block.host = None

    def _bring(self, block: Block) -> None:
        with block.moving:
            if block.device is not None:
                return
            assert block.host is not None, f"{block.id} is not in RAM"
            target = self.on_device.take(block.layout.bytes, block.id)
            if target is None:
                raise NoRun(block.layout.bytes)
            pieces: Iterable[Piece] = [(target.memory, block.host)]
            try:
                pieces = self.host.pieces(target.memory, block.place) if block.place else pieces
                block.arrived = self.device.copy(pieces)
            except BaseException:
                self.on_device.give(target)
                raise
            block.device = target

    def lower(self, name: str) -> None:
        """``name`` leaves the device; returns when nothing reads its bytes any more and they are free."""
        model = self._models[name]
        model.views.rebind(None)
        computed = self.device.mark()
        gone: list[tuple[Place, Event | None]] = []
        with self._lock:
            for block, _ in model.parts:
                block.device_users.discard(name)
                if block.device is not None and not block.device_users:
                    gone.append((block.device, block.arrived))
                    block.device = None
        for place, arrived in gone:
            computed.synchronize()
            if arrived is not None:
                arrived.synchronize()
            self.device.drop(place.memory)
            self.on_device.give(place)

    def rest(self, name: str) -> None:
        """``name`` was opened and stays in RAM: its tensors are not to be looked up."""
        self._models[name].views.rebind(None)

    def drop_host(self, name: str) -> None:
        """Forget the copies in RAM that only ``name`` uses; what is on the device stays there."""
        self._leave_host(name, [block for block, _ in self._models[name].parts])

    def close(self, name: str) -> None:
        """Let go of everything of ``name``; nothing happens if there is nothing."""
        if name not in self._models:
            return
        self.lower(name)
        self.drop_host(name)
        del self._models[name]

    def _leave_host(self, name: str, blocks: list[Block]) -> None:
        for block in blocks:
            with self._lock:
                block.host_users.discard(name)
                if block.host_users:
                    continue
                place, block.host, block.place = block.place, None, None
                self._prints.discard(block)
                if not block.device_users:
                    self._blocks.pop(block.id, None)
            if place is not None:
                self.host.give(place, [block.arrived] if block.arrived is not None else [])

    def _tensors(self, model: Model, memory_of: Callable[[Block], torch.Tensor | None]) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        for block, names in model.parts:
            memory = memory_of(block)
            assert memory is not None, f"{block.id} is not there"
            there = views(memory, block.layout)
            tensors |= {tensor: there[other] for tensor, other in names.items()}
        return tensors

    # ---------------------------------------------------------------- figures

    def segments(self, name: str) -> list[Segment]:
        """Return what ``name`` consists of, [] if it is on the disk only."""
        model = self._models.get(name)
        return [Segment(block.id, block.layout.bytes) for block, _ in model.parts] if model is not None else []

    def is_in_ram(self, name: str) -> bool:
        """Whether all of ``name`` lies in the arena in RAM."""
        model = self._models.get(name)
        return model is not None and all(block.place is not None for block, _ in model.parts)

    def neighbours(self, tier: Tier, nbytes: int, cost: Callable[[set[str], int], float | None]) -> set[str]:
        """Return the models whose sinking makes a hole of ``nbytes`` on ``tier`` and costs least; {} if none can.

        cost: of sinking these models, of which this many bytes go; None = they must stay.
        """
        region = self.on_device if tier is Tier.DEVICE else self.host

        def of_slot(slot: Slot) -> float | None:
            """Return the cost of the block in ``slot``, None where nothing may be displaced."""
            block = self._blocks.get(slot.tag)
            users = set() if block is None else block.device_users if tier is Tier.DEVICE else block.host_users
            return cost(set(users), slot.bytes) if users else None

        with self._lock:
            tags = region.cheapest_run(nbytes, of_slot) or []
            blocks = [self._blocks[tag] for tag in tags]
            return {name for b in blocks for name in (b.device_users if tier is Tier.DEVICE else b.host_users)}
