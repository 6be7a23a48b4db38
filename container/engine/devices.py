"""The device with memory of its own, its tiers' limits and what is built on them; none of it on a CPU machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from container import log
from container.memory import probe
from container.memory.blocks import Blocks
from container.memory.cuda import CudaDevice
from container.memory.device import Device
from container.memory.known import Known
from container.memory.ledger import Ledger, Tier
from container.memory.regions import DeviceRegion, HostRegion
from container.memory.sim import SimDevice
from container.settings import Settings

_log = log.get(__name__)
#: Part of the free RAM that models may have under a device, where no limit is set.
_HOST_SHARE = 0.5
_READERS = 8


def open_device(name: str) -> Device | None:
    """Return the device of "cuda:N" or "sim:SIZE@SPEED/s", None for "cpu"."""
    if name.startswith("sim:"):
        return SimDevice(name)
    return CudaDevice(name) if name.startswith("cuda") else None


def limits(settings: Settings, device: Device | None) -> dict[Tier, int]:
    """Return the bytes of models on each tier that there is.

    What is set stands whatever is free now: what the device lacks may be there later (``memory/machine``).
    """
    if device is None:
        if settings.host_memory_limit is not None:
            _log.warning("BERTH_HOST_MEMORY_LIMIT has no meaning without a GPU and is ignored")
        return {Tier.DEVICE: probe.default_limit("cpu") if settings.memory_limit is None else settings.memory_limit}
    free, on_device = device.free_bytes(), settings.memory_limit
    if on_device is None:
        on_device = int(free * probe.SHARE)
    elif on_device > free:
        _log.warning("BERTH_MEMORY_LIMIT is %d bytes, and the device has no more than %d free now", on_device, free)
    in_ram = settings.host_memory_limit
    return {Tier.DEVICE: on_device, Tier.HOST: int(probe.free_ram_bytes() * _HOST_SHARE) if in_ram is None else in_ram}


def free(known: Known, ledger: Ledger) -> dict[Tier, Callable[[], int]]:
    """Return what asks a machine without a device how much more models could take.

    Mapped files count as free there, and are taken if the ledger has booked them: one that is only being looked at,
    and may be refused, takes nothing from the others. Memory that lies ready for who comes up is there for models.
    """
    booked = ledger.account(Tier.DEVICE).has
    return {Tier.DEVICE: lambda: probe.free_ram_bytes() + known.spare_bytes - known.mapped_bytes(booked)}


def free_under(device: Device, blocks: Blocks) -> dict[Tier, Callable[[], int]]:
    """Return the same for a device and the RAM under it: what the arenas have and nobody uses is for models.

    Models of host children can have of it only what is given back (``regions``): the rest counts for them all the same.
    """
    host, on_device = blocks.host, blocks.on_device
    return {
        Tier.DEVICE: lambda: device.free_bytes() + on_device.capacity - on_device.used_bytes,
        Tier.HOST: lambda: probe.free_ram_bytes() + host.capacity - host.used_bytes,
    }


def blocks(settings: Settings, device: Device, limits: dict[Tier, int]) -> Blocks:
    """Return the place of known models on ``device`` and in RAM; the first RAM is locked in the background."""
    host = HostRegion(device, limits[Tier.HOST], ThreadPoolExecutor(1, "grower"))
    host.grow_ahead()
    readers = ThreadPoolExecutor(min(_READERS, 2 * len(os.sched_getaffinity(0))), "reader")
    on_device = DeviceRegion(device, limits[Tier.DEVICE])
    return Blocks(device, host, on_device, readers, allow_pickle=settings.allow_pickle, share=settings.sharing)
