"""From POST /models to the first answer, the files in the page cache: tiny BERT and BERT-base, new weights each time.

Beside it the same in a process without a server: from_pretrained and one answer, everything imported beforehand.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from bench import archives
from bench.pairs import Ratio, Series, alternate
from bench.peers.bare import Bare
from bench.peers.berth import Berth
from bench.peers.mms import Mms
from bench.peers.server import Server
from bench.report import Goal, Options, Report, Table

TITLE = "POST /models to first answer, page cache warm"
_TEXT = "the first answer of a model that was just loaded"
_BODY = json.dumps({"inputs": _TEXT}).encode()
#: Weights of BERT-base are 438 MB a copy on disk: one for each round, no more than this many.
_MOST_BASES = 5


def run(options: Options) -> Report:
    """Measure the three sizes for every contender in turn; a warm answer follows each cold one."""
    report = Report("cold", TITLE)
    bases = min(options.rounds, _MOST_BASES)
    kinds: dict[str, list[Path]] = {
        "tiny, tokenizer never seen": [archives.tiny(seed, own_tokenizer=True) for seed in range(options.rounds)],
        "tiny, tokenizer seen before": [archives.tiny(seed) for seed in range(options.rounds)],
        "BERT-base": [archives.base(seed) for seed in range(bases)],
    }
    makers: dict[str, Callable[[], Server | Bare]] = {
        "bare": lambda: Bare(passive=True),
        "mms": lambda: Mms("bert"),
        "berth": Berth,
    }
    with ExitStack() as stack:
        peers: dict[str, Server | Bare] = {}
        for name, make in makers.items():
            if name in options.peers:
                peers[name] = make()
                stack.enter_context(peers[name])
        starts = {name: peer.started_s for name, peer in peers.items() if isinstance(peer, Server)}
        rows = [(name, f"{seconds * 1e3:,.0f}") for name, seconds in starts.items()]
        report.tables.append(Table("start, once", ("", "ms from spawn to the first 200 of /ping"), rows))
        report.samples["start_s"] = starts
        for peer in peers.values():  # a server's very first load imports what later ones find imported
            _cold(peer, archives.tiny(900))
        for kind, folders in kinds.items():
            taken = _alternate(peers, folders)
            report.samples[kind] = taken
            report.tables.append(_table(kind, taken))
            report.goals += _goals(kind, taken)
    report.notes.append("Each server has loaded one tiny BERT before: its imports and its first fork are not counted.")
    report.notes.append("mms and bare read the tokenizer anew each time; for them the first two tables are one case.")
    return report


def _alternate(peers: dict[str, Server | Bare], folders: list[Path]) -> dict[str, list[tuple[float, float]]]:
    queues = {name: iter(folders) for name in peers}

    def measure(name: str) -> tuple[float, float]:
        return _cold(peers[name], next(queues[name]))

    return alternate({name: (lambda name=name: measure(name)) for name in peers}, len(folders))  # type: ignore[misc]


def _cold(peer: Server | Bare, folder: Path) -> tuple[float, float]:
    """Return the seconds to the first answer, and those of a warm one (the best of ten; 0.0 for bare)."""
    archives.warm(folder)
    if isinstance(peer, Bare):
        return peer.cold(folder, _TEXT), 0.0
    name = folder.name
    place = peer.place(name, folder)
    began = time.perf_counter()
    peer.post_model(name, place)
    answer = peer.invoke(name, _BODY)
    cold = time.perf_counter() - began
    _check(answer)
    warm = min(_timed(peer, name) for _ in range(10))
    peer.unload(name)
    return cold, warm


def _timed(peer: Server, name: str) -> float:
    began = time.perf_counter()
    peer.invoke(name, _BODY)
    return time.perf_counter() - began


def _check(answer: bytes) -> None:
    vector = cast(list[float], json.loads(answer))
    if not vector or not isinstance(vector[0], float):
        raise ValueError(f"not a vector: {answer[:200]!r}")


def _table(kind: str, taken: dict[str, list[tuple[float, float]]]) -> Table:
    rows = [
        (name, _series(pairs, 0).text(1), _series(pairs, 1).text(1) if name != "bare" else "-")
        for name, pairs in taken.items()
    ]
    return Table(kind, ("", "ms to the first answer", "ms of a warm answer"), rows)


def _series(pairs: list[tuple[float, float]], which: int) -> Series:
    return Series(tuple(pair[which] * 1e3 for pair in pairs))


def _goals(kind: str, taken: dict[str, list[tuple[float, float]]]) -> list[Goal]:
    if "berth" not in taken:
        return []
    ours, warm = _series(taken["berth"], 0), _series(taken["berth"], 1)
    limits = {"tiny, tokenizer never seen": 40.0, "tiny, tokenizer seen before": 20.0}
    limit = limits.get(kind, round(1.25 * warm.median + 50, 1))
    goals = [Goal.most(f"{kind}: POST to first answer", ours, limit, "ms")]
    if "mms" in taken:
        ratio = Ratio(_series(taken["mms"], 0), ours)
        goals.append(Goal(f"{kind}: multi-model-server over berth", "-", ratio.text(), ""))
    return goals
