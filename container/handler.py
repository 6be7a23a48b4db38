"""The contract between berth and whoever writes a model's code.

    payload ──decode──> input ──┐
    payload ──decode──> input ──┼─ predict([inputs]) ─> [outputs] ──encode──> payload
    payload ──decode──> input ──┘

Only ``load`` and ``predict`` are required. What berth guarantees to a handler is listed in handlers/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from container.payload import Payload
from container.protocol import codecs

if TYPE_CHECKING:
    import torch

Weights = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler may know of its surroundings; frozen, so that nothing can be smuggled through it.

    name: the model's registered name.
    device: "cpu" or "cuda:0": where tensors are when ``predict`` runs.
    options: the ``options`` object of berth.json, as the author wrote it.
    open_weights: for built-in networks: maps the checkpoint under a folder and returns name -> tensor. The
        mapping stays valid while the handler lives; the tensors behind it are moved between tiers by berth, so look
        them up on each call and keep none.
    properties: what multi-model-server calls system_properties: model_dir, gpu_id, batch_size, server_name.
    room: bytes of the device that one request's Claim can ever get beside the weights; None = nobody counts.
    """

    name: str
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)
    open_weights: Callable[[Path], Weights] | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)
    room: Callable[[], int] | None = None


class Parts(dict[int, Payload]):
    """What ``steps`` yields when pieces of answers are ready: place in the batch -> the next piece.

    The caller gets it at once if it takes a stream, else with the rest. What ``encode`` returns for that place is the
    last piece. The first piece's content type is the answer's.
    """


class Ready(dict[int, Any]):
    """What ``steps`` yields when some outputs are ready before the others: place in the batch -> its output.

    The caller has its answer at once; what stands in that place of the list of outputs is ignored.
    """


@dataclass(slots=True, eq=False)
class Claim:
    """What ``steps`` yields before it takes memory beside the weights, such as a cache of keys and values.

    least: bytes without which nothing can begin. most: what the batch would use at best. granted: what it may take,
    not under ``least``, set when ``steps`` is resumed; the bytes are given back when ``steps`` has ended. A claim that
    cannot be granted ends the batch, whose requests wait and are run anew. waiting: places in the batch that have not
    begun because ``granted`` is less than ``most``; kept by ``steps``, so that who waits in vain is told for what.
    """

    least: int
    most: int
    granted: int = 0
    waiting: Collection[int] = ()
    _places: list[Mapping[int, int]] = field(default_factory=list)

    def move(self, places: Mapping[int, int]) -> None:
        """Say where the places in this batch lie in the one that it is part of."""
        self._places.append(places)

    def lacks(self, place: int) -> int:
        """Return the bytes that ``place`` of the whole batch waits for, 0 if it has what it needs; from any thread."""
        if self.granted >= self.most:
            return 0
        waiting = self.waiting
        for places in self._places:
            waiting = [places[each] for each in waiting]
        return self.least if place in waiting else 0

    def __post_init__(self) -> None:
        self.granted = self.most


class Handler:
    """Base class of every handler: the built-in ones and those of archives (``code/handler.py``).

    One object serves one model. ``predict`` is never called twice at a time on the same object, unless
    ``reentrant`` says that it may be.
    """

    task: ClassVar[str] = ""
    #: A request that works: ``berth check`` tries it. ``load`` may make it where each model takes something else.
    example: Payload = Payload(b"{}")
    #: True when ``predict`` keeps no state between calls and may run on several threads at once; ``load`` may decide.
    reentrant: bool = False
    #: False when one call serves one request; ``predict`` is then given batches of one. ``load`` may decide.
    batched: bool = True
    #: True when ``decode`` and ``encode`` do the KServe v2 protocol themselves; for others ``model/v2_bridge`` does it.
    speaks_v2: ClassVar[bool] = False
    #: The name the model is registered under; set by berth before ``load``, shown in log lines.
    registered_name: str = ""
    #: Bytes of weights that are not torch's, which berth cannot see for itself; ``load`` may set it.
    weights_bytes: int = 0

    def load(self, model_dir: Path, context: Context) -> None:
        """Read the model under ``model_dir``; build on the CPU, the weights are placed for you.

        Raises BadArchive for a layout that is wrong; any other exception is reported as model.load_failed.
        """

    def decode(self, payload: Payload) -> Any:
        """Return one input of ``predict``. Raises MediaType, BadRequest or BadInput.

        By default by content type: JSON -> Python values, text/csv -> rows, npy/npz -> arrays, text -> str,
        anything else -> bytes.
        """
        return codecs.decode(payload.body, payload.content_type)

    def size(self, value: Any) -> int:
        """Return the work in one input, in units that add up (tokens, pixels); batches are cut by it."""
        return 1

    def predict(self, batch: list[Any]) -> list[Any]:
        """Return one output for each input, in order; the length is checked.

        An output may be an exception of the error tree: then only that caller gets it. A Payload goes out as it is.
        """
        raise NotImplementedError(f"{type(self).__name__} has no predict")

    def steps(self, batch: list[Any]) -> Iterator[list[Any] | Parts | Ready | Claim | None]:
        """Yield None, Parts or Ready between steps of long work, so that others get the device; the outputs last.

        A Claim comes before all else.
        """
        yield self.predict(batch)

    def rest(self) -> bool:
        """Keep a few kilobytes at most while the model is sunk, and return True; False: it is loaded anew then.

        Asked of built-in tasks alone, whose weights berth opens and closes.
        """
        return False

    def wake(self) -> bool:
        """Be after ``rest`` as before, over the same files; False if that cannot be, and it is loaded anew."""
        return False

    def encode(self, output: Any, accept: str) -> Payload:
        """Return the answer for ``output``. Raises NotAcceptable. By default by the Accept header."""
        body, content_type = codecs.encode(output, accept)
        return Payload(body, content_type)
