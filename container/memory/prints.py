"""Which block has a tensor that looks like this one: fingerprints to blocks. Pure; whoever has it holds a lock.

A block is known by its fingerprints from the moment that somebody means to read it, so that models which load at the
same time want one place and not two. A fingerprint is a hint: what is claimed here is compared byte for byte when it is
read (``memory/blocks``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from container.memory.block import Block
from container.memory.likeness import LEAST_BYTES

#: A block is shared only by models that have this part of it, or more: who uses it moves all of it.
_SHARED_PART = 7 / 8


class Prints:
    """The blocks that lie in RAM, or soon will. ``blocks``: fingerprint -> the first block that has such a tensor."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, Block] = {}

    def add(self, block: Block) -> None:
        """Let others find ``block`` from here on."""
        for print_ in block.prints.values():
            self.blocks.setdefault(print_, block)

    def discard(self, block: Block) -> None:
        """Let nobody find ``block`` any more."""
        for print_ in block.prints.values():
            if self.blocks.get(print_) is block:
                del self.blocks[print_]

    def claim(self, prints: Mapping[str, bytes]) -> list[tuple[Block, dict[str, str]]]:
        """Return the blocks that ``prints`` (tensor -> fingerprint) make up, those with the most tensors first.

        Each with {tensor: the block's name for it}; a tensor is in one of them at most.
        """
        parts: list[tuple[Block, dict[str, str]]] = []
        left = dict(prints)
        found = [block for print_ in left.values() if (block := self.blocks.get(print_)) is not None]
        for block, _ in Counter(found).most_common():
            there = {print_: tensor for tensor, print_ in block.prints.items()}
            names = {
                tensor: tensor if block.prints.get(tensor) == print_ else there[print_]
                for tensor, print_ in left.items()
                if print_ in there
            }
            nbytes = sum(block.layout.shapes[each].bytes for each in set(names.values()))
            whole = sum(shape.bytes for shape in block.layout.shapes.values())
            if nbytes >= max(LEAST_BYTES, whole * _SHARED_PART):
                parts.append((block, names))
                left = {tensor: print_ for tensor, print_ in left.items() if tensor not in names}
        return parts
