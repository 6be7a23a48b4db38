"""What the models of a host child consist of, as the child tells: checked before the ledger hears of it.

The child runs authors' code and is not believed more than it has to be: what it cannot have is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from container.memory.ledger import Segment
from container.wire import messages as m


class BadCut(ValueError):
    """What a child has told of shared weights cannot be."""


class Cuts:
    """The parts of one life of a child. name: of that life, in the ids of its segments, which no other's are like."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._known: dict[int, int] = {}

    def take(self, shared: m.Shared, loaded: Mapping[str, int]) -> dict[str, list[Segment]]:
        """Return the segments of the models that are still there; raises BadCut if something of it cannot be.

        loaded: model -> the bytes that it had when it was loaded.
        """
        for number, nbytes in shared.parts.items():
            if nbytes < 0 or self._known.get(number, nbytes) != nbytes:
                raise BadCut(f"part {number} has {nbytes} bytes")
        found = {
            cut.name: self._segments(cut, shared.parts, loaded[cut.name]) for cut in shared.cuts if cut.name in loaded
        }
        self._known |= shared.parts
        return found

    def _segments(self, cut: m.Cut, parts: Mapping[int, int], loaded_bytes: int) -> list[Segment]:
        if not set(cut.parts) <= parts.keys() or len(set(cut.parts)) < len(cut.parts):
            raise BadCut(f"{cut.name!r} has parts {cut.parts} of {sorted(parts)}")
        # One that joins a part may use some of it only, and holds it all; but nobody brings more than he has.
        new = sum(parts[number] for number in cut.parts if number not in self._known)
        if cut.own_bytes < 0 or cut.own_bytes + new > loaded_bytes:
            raise BadCut(f"{cut.name!r} has {cut.own_bytes} bytes beside {new}, and was loaded with {loaded_bytes}")
        shared = [Segment(f"{self._name}:{number}", parts[number]) for number in cut.parts]
        return [*shared, Segment(cut.name, cut.own_bytes)]
