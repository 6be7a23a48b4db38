"""The machine's own figures beside the ledger's: where it has less for models than the limit says, it wins.

Free RAM, or free memory of the device, is asked at most twice a second, when room is planned. What of the models' bytes
the machine itself counts as free (mapped files) or as taken though nobody uses it (arenas) is told by who asks. How
much of what is reserved is there already, and how much of what leaves is still there, nobody can tell: what the machine
had before stands as long as its figure may mean that. Free disk is asked for whenever a model is registered. Does not
cover: what sinks then (``memory/plan``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from container.errors import NoRoom
from container.memory.ledger import Ledger, Tier

_EVERY_S = 0.5
#: What stays free on the volume of the models' folders, whichever is less: bytes, part of the volume.
DISK_BYTES, DISK_PART = 64 << 20, 0.02


def check_disk(folder: Path) -> None:
    """Raise NoRoom if the volume of ``folder`` is as good as full: who loads models must take some away first.

    The platform downloads archives to that volume, and takes the archives of unloaded models from it (contract.md,
    section 2.3). Sinking frees nothing there. A volume that nobody can write to is never full.
    """
    volume = os.statvfs(folder)
    missing = disk_missing(volume)
    if missing > 0:
        free = volume.f_bavail * volume.f_frsize
        raise NoRoom(
            f"the disk that holds the models has {free} bytes free, {missing} less than must stay; unload models and "
            "remove their archives, or give the container a larger volume"
        )


def disk_missing(volume: os.statvfs_result) -> int:
    """Return the bytes by which ``volume`` has less free than must stay; at most 0 if it has enough. Pure."""
    if volume.f_flag & os.ST_RDONLY:
        return 0
    reserve = min(DISK_BYTES, int(volume.f_blocks * volume.f_frsize * DISK_PART))
    return reserve - volume.f_bavail * volume.f_frsize


class Machine:
    """free: for each tier that is asked about, the bytes that models could take beside those that they have."""

    def __init__(self, ledger: Ledger, free: Mapping[Tier, Callable[[], int]]) -> None:
        self._ledger = ledger
        self._free = free
        self._again_s = 0.0
        self._found: dict[Tier, int] = {}

    def look(self) -> None:
        """Bring the figures into the ledger, if the last time is a while ago."""
        now = time.monotonic()
        if now < self._again_s:
            return
        self._again_s = now + _EVERY_S
        for tier, free in self._free.items():
            sums, before = self._ledger.figures(tier), self._ledger.account(tier).cap
            self._found[tier] = found = free()
            least = sums.used + found  # nothing of what is on its way is there
            most = least + sums.reserved + sums.leaving  # all of it is
            self._ledger.set_cap(tier, max(0, least if before is None else min(max(before, least), most)))

    def gaps(self) -> dict[Tier, int]:
        """Return by how much more is free for models by limit and ledger than by the machine, in bytes; looks anew."""
        self._again_s = 0.0
        self.look()
        gaps = {}
        for tier, found in self._found.items():
            sums = self._ledger.figures(tier)
            taken = sums.used + sums.reserved + sums.leaving
            gaps[tier] = self._ledger.account(tier).limit - taken - found
        return gaps
