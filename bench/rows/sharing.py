"""Equal weights of different models: 200 copies of BERT-base over one, and 50 fine-tunes over their trunk.

Twenty of the copies are files of their own, the others hard links to them; each has answered, and all have been
compared, before anything is counted. With sharing off as many copies as there are without it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from bench import archives, processes
from bench.peers.berth import Berth
from bench.report import Goal, Options, Report, Table

TITLE = "equal weights, kept once"
MIB = 1 << 20
_BODY = json.dumps({"inputs": "one of many"}).encode()
_FILES, _COPIES, _APART, _TUNES = 20, 200, 5, 50
#: What a further copy may take for itself.
_EACH = 50_000
#: Of one text: the models read 128 tokens of it, and a word here has two but for a few.
_WORDS = 60
#: A letter of the vocabulary with which no longer word of it begins: what follows in a word is the token ``##...``.
_LETTER = "\u0561"


class _Taken(NamedTuple):
    """weights: bytes of one model. one, all: memory beyond the empty server's. ledger: berth's own count of all."""

    models: int
    weights: int
    one: int
    all: int
    ledger: float

    @property
    def row(self) -> tuple[str, ...]:
        sizes = (self.weights, self.one, self.all, self.ledger)
        return (str(self.models), *(f"{size / MIB:,.1f}" for size in sizes))


def run(options: Options) -> Report:
    """Load the copies with sharing on and off, then the fine-tunes."""
    report = Report("sharing", TITLE)
    files, copies, tunes, apart = (4, 40, 10, 3) if options.quick else (_FILES, _COPIES, _TUNES, _APART)
    same = [archives.same_base(number) for number in range(files)]
    tuned = [archives.fine_tune(number) for number in range(tunes)]
    taken = {
        "BERT-base, sharing on": _measure("on", [same[number % files] for number in range(copies)]),
        "BERT-base, sharing off": _measure("off", same[:apart]),
        "fine-tunes, sharing on": _measure("on", tuned),
        "fine-tunes, sharing off": _measure("off", tuned),
    }
    columns = ("", "models", "weights of one", "one", "all", "by the ledger")
    rows = [(what, *each.row) for what, each in taken.items()]
    report.tables.append(Table("PSS in MiB beyond the empty server's", columns, rows))
    report.samples.update({what: each._asdict() for what, each in taken.items()})
    report.goals = [
        _goal(f"{copies} identical BERT-base over one", taken["BERT-base, sharing on"], 1.02),
        _goal(f"{tunes} fine-tunes over one: trunk once", taken["fine-tunes, sharing on"], 1.02),
    ]
    apart_over = taken["BERT-base, sharing off"]
    found = f"{apart_over.all / apart_over.one:.2f} x for {apart_over.models}"
    report.goals.append(Goal("the same with sharing off", "-", found, ""))
    report.notes.append("One: a copy that has been asked for every token of its vocabulary, so that it lies in memory")
    report.notes.append("whole. Sharing off: files of their own, as hard links would lie in the same pages.")
    report.notes.append("Counted: memory of no file, shared blocks and the weights' files; not libraries, whose part")
    report.notes.append("in PSS moves with what else runs on the machine.")
    return report


def _measure(sharing: str, folders: list[Path]) -> _Taken:
    with Berth({"BERTH_SHARING": sharing, "BERTH_MEMORY_LIMIT": "6GiB"}) as server:
        size = archives.bytes_of_weights(folders[0])
        server.load("warm", archives.tiny(0))  # what the first model of all brings in is not counted
        server.invoke("warm", _BODY)
        empty = _memory(server)
        server.load("copy-000", folders[0])
        for body in _every_token():
            server.invoke("copy-000", body)
        one = _memory(server) - empty
        for number, folder in enumerate(folders[1:], 1):
            name = f"copy-{number:03}"
            server.load(name, folder)
            server.invoke(name, _BODY)
            server.describe(name)  # answers once it is known what the model shares
        for number in range(len(folders)):
            server.invoke(f"copy-{number:03}", _BODY)
        whole = _memory(server) - empty
        return _Taken(len(folders), size, one, whole, server.metric("berth_memory_bytes", tier="device", kind="used"))


def _memory(server: Berth) -> int:
    return processes.own_bytes(server.pids(), ".safetensors")


def _every_token() -> list[bytes]:
    """Return bodies with every token that a text can have: a model that has answered them lies in memory whole.

    No text has 1,331 of BERT's, nor position 128, and without a classifier the pooler is idle: 7 MiB of a BERT-base.
    """
    vocabulary = (archives.minilm() / "vocab.txt").read_text().splitlines()
    words = [word.replace("##", _LETTER, 1) for word in vocabulary if not word.startswith("[unused")]
    texts = [" ".join(words[at : at + _WORDS]) for at in range(0, len(words), _WORDS)]
    return [json.dumps({"inputs": text}).encode() for text in texts]


def _goal(figure: str, taken: _Taken, times: float) -> Goal:
    limit = times * taken.one + _EACH * (taken.models - 1)
    wanted = f"at most {times:g} x and 50 KB each: {limit / MIB:,.1f} MiB"
    found = f"{taken.all / MIB:,.1f} MiB, {taken.all / taken.one:.3f} x"
    return Goal(figure, wanted, found, "reached" if taken.all <= limit else "missed")
