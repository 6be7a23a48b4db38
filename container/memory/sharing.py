"""Equal weights of different models, kept once: found by sampling, proven by comparing, moved into sealed memory.

    model A (its file) ─┐  fingerprints match, every byte compared
                        ├──> one sealed block, referred to by both; what differs (a head) stays each model's own
    model B (its file) ─┘

A fingerprint samples 768 bytes of a tensor; it only says where comparing is worth while. What is shared can be written
by nobody: the block is a copy (not the owner's file), sealed, and mapped read-only; a stray write of our own code would
end the process rather than change another model's answers. A file that nothing is left in is let go.

``join`` runs off the request path, on a thread of the caller's choice, while the models answer from what they have.

Does not cover: the memory of host children (``host/alike``); a GPU, where the ledger's segments are the same but the
blocks are not these. Sharing shows in times and figures; ``salt`` keeps tenants apart (design.md, section 6).
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch

from container import log
from container.memory import sealed
from container.memory.ledger import Segment
from container.memory.likeness import LEAST_BYTES, PRINT_BYTES, fingerprints, same_bytes
from container.memory.mapped import Verified
from container.memory.weights import WeightMap

_log = log.get(__name__)
_NOT_TAKEN = bytes(PRINT_BYTES)


class Block:
    """One sealed block of tensors, alive while a WeightMap refers to it. ``tensors``: fingerprint -> view."""

    def __init__(self, block_id: str, tensors: Mapping[bytes, torch.Tensor]) -> None:
        self.id = block_id
        self.bytes, self.tensors = sealed.copy(tensors)
        #: Identities of the maps whose tensors were compared with these, byte for byte.
        self.verified = Verified()
        self._served: dict[str, torch.Tensor] = {}

    def served(self, bound: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return ``bound``, tensors of this block by their names, or the same in that order which was given before.

        Copies of one model have one dictionary: 7 KB less for each copy of a BERT.
        """
        last = self._served
        if list(last) == list(bound) and all(last[name] is tensor for name, tensor in bound.items()):
            return last
        self._served = bound
        return bound


class _Member:
    """A model that is up. ``prints``: tensor -> fingerprint of those that it has for itself."""

    def __init__(self, weights: WeightMap, prints: dict[str, bytes]) -> None:
        self.weights = weakref.ref(weights)
        self.prints = prints

    @property
    def is_up(self) -> bool:
        """Is its map open?"""
        weights = self.weights()
        return weights is not None and weights.is_open


class _Joining:
    """One model while it is being joined: what is found equal is moved from ``prints`` to ``bound``."""

    def __init__(self, weights: WeightMap, salt: str) -> None:
        self.weights = weights
        names = list(weights.tensors())  # before the rest: the map may be closed at any time
        candidates = {n: t for n, t in weights.own_tensors().items() if t.device.type == "cpu" and t.is_contiguous()}
        self.tensors = candidates
        self.prints = _sampled(weights, names, candidates, salt)
        self.bound: dict[str, torch.Tensor] = {}
        self.blocks: list[Block] = []

    def equal(self, others: Mapping[bytes, torch.Tensor], trusted: bool = False) -> dict[str, torch.Tensor]:
        """Return tensor -> the equal one of ``others``, compared in full unless ``trusted``; {} if not worth while."""
        found = {
            name: others[print_]
            for name, print_ in self.prints.items()
            if print_ in others and (trusted or same_bytes(self.tensors[name], others[print_]))
        }
        return found if sum(tensor.nbytes for tensor in found.values()) >= LEAST_BYTES else {}

    def bind(self, block: Block, found: Mapping[str, torch.Tensor]) -> None:
        """Take ``found`` from ``block`` from here on."""
        if not any(print_ in block.tensors for name, print_ in self.prints.items() if name not in found):
            block.verified.add(self.weights.identity)
        self.bound.update(found)
        self.prints = _without(self.prints, found)
        self.blocks.append(block)

    def finish(self) -> bool:
        """Let the map serve what was bound; False if nothing was, or the map was closed meanwhile."""
        if self.blocks:
            self.weights.give_back()  # what is left stays in the file, not in memory that holds the rest, too
        bound = self.blocks[0].served(self.bound) if len(self.blocks) == 1 else self.bound
        return bool(self.blocks) and self.weights.rebind(bound, self.blocks)


class Sharing:
    """What is up, by content. Both verbs may come from any thread; one ``join`` runs at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._books = threading.Lock()  # for moments only: who has what, _members and _owners
        self._members: dict[str, _Member] = {}
        self._owners: dict[bytes, str] = {}  # fingerprint -> a model that has such a tensor for itself
        self._blocks: dict[bytes, weakref.ref[Block]] = {}  # fingerprint -> the block that has it
        self._made = 0

    def meet(self, name: str, weights: WeightMap, salt: str = "") -> int | None:
        """``recall``, then return the bytes to reserve for ``weights`` beside the blocks that it refers to now.

        None = all that is left: nobody has anything of it, there is nothing to ``join``, and others can meet it from
        here on, also one that does so at this very moment. Takes a fingerprint of each tensor (a millisecond for a
        BERT), compares no byte, waits for no ``join``.
        """
        joining = _Joining(weights, salt)
        if self._recall(joining):
            joining = _Joining(weights, salt)
        with self._books:
            self._forget_closed()
            self._strike(name)  # what it had when it was up before
            expected = self._expected(joining)
            if expected < weights.own_bytes:
                return expected
            self._enlist(name, weights, joining.prints)
        return None

    def expect(self, weights: WeightMap, salt: str = "") -> int:
        """Return the bytes that ``weights`` will have for itself once joined, as far as samples tell."""
        return self._expected(_Joining(weights, salt))

    def _expected(self, joining: _Joining) -> int:
        found: Counter[object] = Counter()
        for tensor, print_ in joining.prints.items():
            reference = self._blocks.get(print_)
            there = reference is not None and reference() is not None
            found[reference if there else self._open_owner(print_)] += joining.tensors[tensor].nbytes
        found.pop(None, None)
        return joining.weights.own_bytes - sum(nbytes for nbytes in found.values() if nbytes >= LEAST_BYTES)

    def _open_owner(self, print_: bytes) -> str | None:
        """The model that has such a tensor for itself, if it is still open: one that was closed shares nothing."""
        owner = self._owners.get(print_)
        member = self._members.get(owner) if owner is not None else None
        return owner if member is not None and member.is_up else None

    def recall(self, weights: WeightMap, salt: str = "") -> bool:
        """Bind ``weights`` to blocks its files were compared with before: no byte compared.

        For a model that rises again. Returns whether anything was bound; ``join`` finds what else there is. Waits for
        no ``join`` that may be running.
        """
        return self._recall(_Joining(weights, salt))

    def _recall(self, joining: _Joining) -> bool:
        identity = joining.weights.identity
        for block in self._known(joining.prints.values()):
            if identity in block.verified and (found := joining.equal(block.tensors, trusted=True)):
                joining.bind(block, found)
        return joining.finish()

    def join(self, name: str, weights: WeightMap, salt: str = "") -> dict[str, list[Segment]]:
        """``name`` is up with ``weights``: share what it has in common with the others that are up.

        Returns the segments of every model that changed, for ``Ledger.recut``; {} if nothing was found. Models of
        different ``salt`` never share. Takes as long as reading what is shared, and copying it the first time.
        """
        with self._lock:
            with self._books:
                self._forget_closed()
            joining = _Joining(weights, salt)
            changed = []
            for block in self._known(joining.prints.values()):
                if found := joining.equal(block.tensors, weights.identity in block.verified):
                    joining.bind(block, found)
            for partner in self._partners(name, joining):
                if self._merge(partner, joining):
                    changed.append(partner)
            if joining.finish():
                changed.append(name)
            with self._books:
                self._enlist(name, weights, joining.prints)
            members = ((one, self._members.get(one)) for one in changed)
            ups = ((one, member.weights() if member is not None else None) for one, member in members)
            return {one: segments(one, up) for one, up in ups if up is not None and up.is_open}

    def _enlist(self, name: str, weights: WeightMap, prints: dict[str, bytes]) -> None:
        """Let others find ``name`` by what it has for itself."""
        self._strike(name)
        self._members[name] = _Member(weights, prints)
        for print_ in prints.values():
            if self._open_owner(print_) is None:
                self._owners[print_] = name

    def _known(self, prints: Iterable[bytes]) -> list[Block]:
        """Return the blocks with tensors of these fingerprints, those with the most bytes of them first."""
        found: Counter[Block] = Counter()
        for print_ in prints:
            reference = self._blocks.get(print_)
            if reference is not None and (block := reference()) is not None:
                found[block] += block.tensors[print_].nbytes
        return [block for block, nbytes in found.most_common() if nbytes >= LEAST_BYTES]

    def _partners(self, name: str, joining: _Joining) -> list[str]:
        """Return the models that have tensors of these fingerprints for themselves, most bytes first."""
        found: Counter[str] = Counter()
        for tensor, print_ in joining.prints.items():
            owner = self._owners.get(print_, name)
            if owner != name:
                found[owner] += joining.tensors[tensor].nbytes
        return [partner for partner, nbytes in found.most_common() if nbytes >= LEAST_BYTES]

    def _merge(self, partner: str, joining: _Joining) -> bool:
        """Move what ``partner`` and the joining model have in common into a block of both; return if it was done."""
        member = self._members.get(partner)
        weights = member.weights() if member is not None else None
        if member is None or weights is None:
            return False
        theirs = weights.own_tensors()
        found = joining.equal({print_: theirs[name] for name, print_ in member.prints.items() if name in theirs})
        if not found:
            return False
        weights.give_back()  # while there are two of each
        try:
            block = Block(f"shared:{self._made + 1}", {joining.prints[name]: tensor for name, tensor in found.items()})
        except OSError as error:
            _log.warning("equal weights of %s stay apart: no memory for a block of both (%s)", partner, error)
            return False
        candidates = {name: block.tensors[p] for name, p in member.prints.items() if p in block.tensors}
        moved = {name: tensor for name, tensor in candidates.items() if same_bytes(theirs[name], tensor)}
        if not weights.rebind(block.served(moved), [block]):
            return False
        self._made += 1
        if len(moved) == len(candidates):
            block.verified.add(weights.identity)
        joining.bind(block, joining.equal(block.tensors))  # compared once more: this is the copy
        member.prints = _without(member.prints, moved)
        self._introduce(block, partner)
        return True

    def _introduce(self, block: Block, owner: str) -> None:
        reference = weakref.ref(block)
        with self._books:
            for print_ in block.tensors:
                self._blocks[print_] = reference
                if self._owners.get(print_) == owner:
                    del self._owners[print_]
        weakref.finalize(block, _forget, self._blocks, reference, tuple(block.tensors)).atexit = False

    def _forget_closed(self) -> None:
        """Drop what is known of models whose maps were closed."""
        for name in [name for name, member in self._members.items() if not member.is_up]:
            self._strike(name)

    def _strike(self, name: str) -> None:
        """Forget ``name``; takes as long as it has tensors, however many others there are."""
        member = self._members.pop(name, None)
        for print_ in member.prints.values() if member is not None else ():
            if self._owners.get(print_) == name:
                del self._owners[print_]


def segments(name: str, weights: WeightMap) -> list[Segment]:
    """Return what ``name`` consists of for the ledger: the blocks it refers to, and the rest under its own name."""
    return [*(Segment(part.id, part.bytes) for part in weights.shared), Segment(name, weights.own_bytes)]


def _sampled(
    weights: WeightMap, names: Sequence[str], candidates: Mapping[str, torch.Tensor], salt: str
) -> dict[str, bytes]:
    """Return the fingerprints of ``candidates``, some of the tensors of ``weights`` (``names``); taken once for it."""
    places = {name: at * PRINT_BYTES for at, name in enumerate(names)}
    kept = weights.fingerprints.get(salt, bytes(PRINT_BYTES * len(places)))
    prints = {
        name: kept[places[name] : places[name] + PRINT_BYTES] for name, tensor in candidates.items() if tensor.nbytes
    }
    missing = {name: candidates[name] for name, print_ in prints.items() if print_ == _NOT_TAKEN}
    if missing:
        taken = fingerprints(missing, salt)
        prints |= taken
        whole = bytearray(kept)
        for name, print_ in taken.items():
            whole[places[name] : places[name] + PRINT_BYTES] = print_
        weights.fingerprints[salt] = bytes(whole)
    return prints


def _without(prints: dict[str, bytes], gone: Collection[str]) -> dict[str, bytes]:
    """Return ``prints`` without ``gone``; a dictionary that only loses its entries stays as large as it was."""
    return {name: print_ for name, print_ in prints.items() if name not in gone}


def _forget(blocks: dict[bytes, weakref.ref[Block]], gone: weakref.ref[Block], prints: tuple[bytes, ...]) -> None:
    for print_ in prints:
        if blocks.get(print_) is gone:
            del blocks[print_]
