"""The vocabulary of the wire: data only, imported by both ends.

A request carries an ``id`` chosen by the sender; exactly one reply comes back with the same ``id``, in any order.
Deadlines are seconds of CLOCK_MONOTONIC, which all processes of one machine share.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from container.errors import Failure
from container.payload import Payload


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """First frame of a connection. ``client`` names the peer; its bulk connection (large frames) says so."""

    client: str
    bulk: bool = False


class Invoke(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Answer ``payload`` with ``model`` ("" = the single model) before ``deadline``. Reply: Answer.

    stream: the sender takes Chunks before the Answer, if the model answers in pieces; otherwise they are gathered.
    most: requests that may share a run from now on, 0 = as the manifest says (engine to child).
    """

    id: int
    model: str
    payload: Payload
    deadline: float
    stream: bool = False
    most: int = 0


class Load(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Register ``name`` from folder ``url`` and bring it up. ``manifest``: already described (engine to child).

    origin: the archive that ``url`` was unpacked from when the server started; it is shown in the folder's stead.
    keep: what is moved to the device may keep its copy in RAM (engine to child).
    """

    id: int
    name: str
    url: str
    manifest: bytes = b""
    origin: str = ""
    keep: bool = False


class Unload(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Drain, drop and forget ``name``; its bytes are back when Unloaded is."""

    id: int
    name: str


class List(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The ready models, sorted by name, ``limit`` from ``token`` on. Reply: Page."""

    id: int
    limit: int = 100
    token: str = ""


class Describe(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Everything callers may know of one model. Reply: Description."""

    id: int
    name: str


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The caller of request ``id`` is gone; no reply is wanted any more."""

    id: int


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Is the process up? Reply: Status."""

    id: int


class Stats(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """What /metrics shows. Reply: Figures."""

    id: int


class Drain(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Take no new work, finish what runs. Reply: Status when idle."""

    id: int


class Counts(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """What a front counted by itself since the last Counts: (route, status) -> requests. No reply."""

    requests: list[tuple[str, int, int]]


class Attach(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Load ``name`` from folder ``url``, or join who has; it is unloaded when the last such connection ends."""

    id: int
    name: str
    url: str


class Move(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Engine to child: move ``name``, which was loaded as movable, once nothing of it runs. Reply: Loaded.

    lower: to RAM. lift: to the device, back from there. forget: it stays on the device, and its copy in RAM goes.
    What is there already is left as it is.
    """

    id: int
    name: str
    verb: Literal["lower", "lift", "forget"]


class Share(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Engine to child: let ``name`` share what it has in common with others that are up there. Reply: Shared."""

    id: int
    name: str


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=32):
    """What came of an Invoke."""

    id: int
    result: Payload | Failure


class Loaded(msgspec.Struct, frozen=True, array_like=True, tag=33):
    """The model answers. ``bytes`` measured; ``times_ms`` by phase (describe, import, read, ...).

    example: a request that it takes, None if its code names none. movable_bytes: part of ``bytes`` that keeps its copy
    in RAM (Load.keep) and can be moved between it and the device; 0 = it is opaque, and can only be unloaded.
    """

    id: int
    bytes: int
    times_ms: dict[str, float] = {}
    example: Payload | None = None
    movable_bytes: int = 0


class Unloaded(msgspec.Struct, frozen=True, array_like=True, tag=34):
    """The model is gone and ``freed_bytes`` are back."""

    id: int
    freed_bytes: int


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One model of a Page."""

    name: str
    url: str


class Page(msgspec.Struct, frozen=True, array_like=True, tag=35):
    """Some of the models; ``next_token`` "" = the last page."""

    id: int
    models: list[Entry]
    next_token: str = ""


class Port(msgspec.Struct, frozen=True, array_like=True):
    """A tensor that a model takes or gives: its v2 datatype, and its shape with -1 for any size."""

    name: str
    datatype: str
    shape: list[int]


class Description(msgspec.Struct, frozen=True, array_like=True, tag=36):
    """One model. state: loading | ready | draining | quarantined. tier: device | host | disk.

    version, inputs, outputs: of a Triton archive only, as its config.pbtxt declares them. cache_bytes: what its running
    generations have on the device beside ``bytes``. tokenizer_bytes: of its tokenizer, part of ``bytes`` where
    models lie in RAM.
    """

    id: int
    name: str
    url: str
    state: str
    tier: str
    bytes: int
    shared_bytes: int = 0
    reason: str = ""
    task: str = ""
    kind: str = ""
    version: str = ""
    inputs: list[Port] = []
    outputs: list[Port] = []
    cache_bytes: int = 0
    tokenizer_bytes: int = 0


#: State of an engine that is not yet through the models it was started with.
LOADING = "loading"


class Status(msgspec.Struct, frozen=True, array_like=True, tag=37):
    """The process: its state in a word, its device, its pid."""

    id: int
    state: str
    device: str = ""
    pid: int = 0


class Figures(msgspec.Struct, frozen=True, array_like=True, tag=38):
    """Counters and gauges as (name, labels, value); names as /metrics shows them."""

    id: int
    values: list[tuple[str, dict[str, str], float]]


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=39):
    """The request as a whole failed."""

    id: int
    failure: Failure


class Chunk(msgspec.Struct, frozen=True, array_like=True, tag=40):
    """A piece of the answer to an Invoke with ``stream``, in order; the first one's content type is the answer's.

    The Answer that follows ends it: a Payload holds the last piece, a Failure means that the rest will not come.
    """

    id: int
    part: Payload


class Cut(msgspec.Struct, frozen=True, array_like=True):
    """What a model of a child consists of: ``own_bytes``, and parts that others have as well."""

    name: str
    own_bytes: int
    parts: list[int]


class Shared(msgspec.Struct, frozen=True, array_like=True, tag=41):
    """What the models that have changed consist of now. parts: number, of one life of the child -> bytes.

    waits: there is more to be found once all models that may have it rest.
    """

    id: int
    cuts: list[Cut] = []
    parts: dict[int, int] = {}
    waits: bool = False


class Registered(msgspec.Struct, frozen=True, array_like=True, tag=64):
    """Engine to supervisor: ``name`` is registered. To a new engine: it was; ``manifest`` b"" = load it now.

    deaths: how often a process died inside its code. reason: why it is quarantined, "" if it is not.
    origin: as in Load.
    """

    name: str
    url: str
    manifest: bytes = b""
    size_bytes: int = 0
    deaths: int = 0
    reason: str = ""
    origin: str = ""


class Marked(msgspec.Struct, frozen=True, array_like=True, tag=69):
    """Engine to supervisor, and back to a new engine: what is known of the models from folder ``model_dir``.

    offences: processes that died inside their code. apart: they cannot live among others.
    """

    model_dir: str
    offences: int = 0
    apart: bool = False


class Forgotten(msgspec.Struct, frozen=True, array_like=True, tag=65):
    """Engine to supervisor: ``name`` is registered no more."""

    name: str


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=66):
    """Supervisor to engine: the registry is told, open the door."""


class Up(msgspec.Struct, frozen=True, array_like=True, tag=67):
    """Engine to supervisor: the door is open."""

    device: str


class Fatal(msgspec.Struct, frozen=True, array_like=True, tag=68):
    """Engine to supervisor: going on makes no sense (the single model does not load)."""

    reason: str


Control = Registered | Marked | Forgotten | Begin | Up | Fatal
Request = (
    Hello | Invoke | Load | Unload | List | Describe | Cancel | Ready | Stats | Drain | Counts | Attach | Move | Share
)
Reply = Answer | Loaded | Unloaded | Page | Description | Status | Figures | Failed | Chunk | Shared
