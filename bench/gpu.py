"""``python -m bench.gpu``: the memory rows of a machine with one CUDA GPU; a rehearsal on a simulated device without.

Needs no server and no network; under eight minutes, 4 GB of disk. Beside a PyTorch image (torch, numpy) it wants three
wheels; the first line fetches them, on another machine of this kind and with this Python if this one has no network:

    pip download --no-deps -d wheels msgspec safetensors xxhash
    pip install --no-index --no-deps --find-links wheels --target extra wheels/*.whl
    PYTHONPATH=extra python -m bench.gpu

Correctness comes first: 50 random sinks and rises must answer as the same weights do when copied by hand, or nothing is
measured. Every limit is measured in the same run. Not yet run on a GPU (bench/README.md).
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from bench import machine
from bench.disk import forget_cached, raw_read
from bench.gpu_stage import (
    BASE,
    GIB,
    MIB,
    TINY,
    Stage,
    adopt,
    allocated,
    answer,
    ask,
    bandwidth,
    by_hand,
    bytes_of,
    modules,
    rise,
    rise_beside_work,
    stage_in,
    stock_load,
    timed,
    write_bert,
    write_blob,
)
from bench.pairs import Ratio, Series
from bench.report import RESULTS, Goal, Report, Table
from container.memory.arena import NoRun
from container.memory.blocks import Blocks
from container.memory.device import Piece
from container.memory.regions import DeviceRegion

NOT_RUN = "not run: no GPU"
_PAIRS = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return 0, 1 when an answer was wrong."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__, formatter_class=raw)
    parser.add_argument("--folder", type=Path, help="where models are written (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: bench/results)")
    parser.add_argument("--dry", action="store_true", help="write no files")
    asked = parser.parse_args(argv)
    before = machine.look()
    folder = Path(tempfile.mkdtemp(prefix="berth-gpu-", dir=asked.folder))
    try:
        report = run(stage_in(folder))
    except AssertionError as error:
        print(f"WRONG, so nothing was measured: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(report.text(before, "python -m bench.gpu"))
    if not asked.dry and torch.cuda.is_available():
        print(f"kept: {report.keep(before, 'python -m bench.gpu', asked.out)}")
    return 0


def run(stage: Stage) -> Report:
    """Return all rows. Raises AssertionError for a wrong answer."""
    report = Report("gpu", "sinking and rising on one GPU" if stage.real else "sinking and rising, rehearsed")
    said = (("correctness", correctness), ("limits", limits), ("rises", rises), ("cold answers", cold_answers))
    for title, row in (*said, ("from the disk", from_disk), ("bytes beside weights", beside)):
        began = time.monotonic()
        print(f"... {title}", file=sys.stderr, flush=True)
        row(stage, report)
        report.samples[f"{title}: seconds"] = round(time.monotonic() - began, 1)
    if not stage.real:
        report.notes.append("no CUDA GPU here: every line but the CUDA calls ran, on a simulated device of 2 GB/s")
    return report


# --- rows ------------------------------------------------------------------------------------------------------------


def correctness(stage: Stage, report: Report) -> None:
    """50 random sinks and rises of eight models where two fit on the device, each answer against a copy by hand."""
    for seed in range(8):
        write_bert(stage, f"tiny-{seed}", seed, TINY)
    views = {f"tiny-{seed}": stage.open(f"tiny-{seed}") for seed in range(8)}
    expected = {name: answer(stage, by_hand(stage, name), name) for name in views}
    size = stage.blocks.segments("tiny-0")[0].bytes
    small = Blocks(
        stage.device, stage.blocks.host, DeviceRegion(stage.device, 5 * size // 2), ThreadPoolExecutor(2),
        allow_pickle=False, share=False,
    )  # fmt: skip
    crowded = Stage(stage.device, small, stage.folder, stage.dtype, stage.real)
    crowded_views = {name: crowded.open(name) for name in views}
    up: list[str] = []
    generator = random.Random(1)
    for step in range(50):
        name = f"tiny-{generator.randrange(8)}"
        while name not in up:
            try:
                small.lift(name)
                up.append(name)
            except NoRun:
                small.lower(up.pop(0))
        got = answer(crowded, crowded_views[name], name)
        # A GPU may choose another kernel for other addresses; other weights are off by a hundred times as much.
        close = torch.allclose(got, expected[name], atol=2e-3) if stage.real else torch.equal(got, expected[name])
        assert close, f"step {step}: {name} answers differently after rising"
    for name in views:
        small.close(name)
        stage.blocks.close(name)
    assert small.on_device.used_bytes == stage.blocks.host.used_bytes == 0, "bytes did not come back"
    rows = [("50 random sinks and rises", "all answers equal"), ("the same of authors' modules", adopted(stage))]
    report.tables.append(Table("Correctness", ("what", "found"), rows))


def adopted(stage: Stage) -> str:
    """50 random sinks and rises of authors' modules, each answer and each buffer against one that stays up."""
    pairs = [(adopt(stage, one), adopt(stage, other)) for one, other in zip(modules(), modules(), strict=True)]
    for pair in pairs:
        for module, moved in pair:
            ask(module, 0)  # what libraries keep from their first call on is there now
            moved.lower()
    before = allocated(stage)
    for pair in pairs:
        for _, moved in pair:
            moved.lift()
    generator = random.Random(2)
    for step in range(50):
        (module, moved), (still, _) = pairs[generator.randrange(len(pairs))]
        moved.lower()
        if generator.random() < 0.5:  # its home was given up, and is another from here on
            moved.lift()
            moved.forget()
            moved.lower()
        moved.lift()
        got, expected = ask(module, step), ask(still, step)
        assert torch.allclose(got, expected, atol=2e-3), f"step {step}: {type(module).__name__} answers differently"
        for (name, one), other in zip(module.named_buffers(), still.buffers(), strict=True):
            assert torch.allclose(one, other, atol=2e-3), f"step {step}: {name} holds something else"
    for (_, moved), (_, also) in pairs:
        moved.lower()
        also.lower()
    assert allocated(stage) == before, "bytes of authors' modules did not come back"
    return "all answers and buffers equal"


def limits(stage: Stage, report: Report) -> None:
    """What the machine itself copies: from registered memory, from torch's pinned memory, from plain memory."""
    if not stage.real:
        report.tables.append(Table("Limits, GB/s", ("copy", "found"), [("host to device, pinned, 1 GiB", NOT_RUN)]))
        return
    target = torch.empty(GIB, dtype=torch.uint8, device=stage.device.compute)
    place = stage.blocks.host.take(GIB, "limit")
    assert place is not None, "no pinned GiB"
    pinned = torch.empty(GIB, dtype=torch.uint8, pin_memory=True)
    plain = torch.ones(GIB, dtype=torch.uint8)
    sources: dict[str, Callable[[int], Iterable[Piece]]] = {
        "registered, in steps of 256 MiB": lambda size: stage.blocks.host.pieces(
            target[:size], place._replace(memory=place.memory[:size])
        ),
        "torch's pinned memory": lambda size: [(target[:size], pinned[:size])],
        "plain memory": lambda size: [(target[:size], plain[:size])],
    }
    rows = []
    for kind, pieces in sources.items():
        for size in (MIB, 16 * MIB, 219_000_000, GIB):
            speeds = [size / timed(_copy, stage, pieces(size)) / 1e9 for _ in range(6)][1:]
            rows.append((kind, f"{size / MIB:,.0f} MiB", Series(tuple(speeds)).text()))
            report.samples[f"limit {kind} {size}"] = speeds
    stage.blocks.host.give(place)
    report.tables.append(Table("Limits, GB/s", ("host to device from", "bytes", "found"), rows))


def _copy(stage: Stage, pieces: Iterable[Piece]) -> None:
    stage.device.copy(pieces).synchronize()


def rises(stage: Stage, report: Report) -> None:
    """Bytes of a model over its rise time, against a pinned copy of 1 GiB, alternating."""
    table, many = [], 20 if stage.real else 3
    for kind, goal in (("bert-base", 0.95), ("resnet-50", 0.90)):
        if kind == "bert-base":
            write_bert(stage, kind, 1, BASE if stage.real else TINY)
        else:
            write_blob(stage, kind, 25_600_000 if stage.real else 25_600)
        stage.open(kind)
        nbytes = sum(segment.bytes for segment in stage.blocks.segments(kind))
        ours, theirs, busy = [], [], []
        for _ in range(_PAIRS):
            ours.append(nbytes / statistics.median(rise(stage, kind) for _ in range(many)) / 1e9)
            theirs.append(bandwidth(stage))
            busy.append(nbytes / statistics.median(rise_beside_work(stage, kind) for _ in range(many)) / 1e9)
        stage.blocks.close(kind)
        ratio = Ratio(Series(tuple(ours)), Series(tuple(theirs)))
        report.samples[f"rise {kind}"] = {"ours": ours, "limit": theirs, "beside computing": busy}
        figures = (Series(tuple(ours)).text(), Series(tuple(theirs)).text(), Series(tuple(busy)).text())
        table.append((kind, f"{nbytes / MIB:,.1f}", *(figures if stage.real else (NOT_RUN,) * 3)))
        if stage.real:
            report.goals.append(Goal.ratio(f"rise of {kind} over a pinned GiB", ratio, goal))
        else:
            report.notes.append(f"rehearsed: {kind} rises at {ratio.pairs.median:.2f} of the simulated bandwidth")
    columns = ("model", "MiB", "rise GB/s", "pinned GiB, GB/s", "rise beside computing, GB/s")
    report.tables.append(Table("Rises", columns, table))


def cold_answers(stage: Stage, report: Report) -> None:
    """The answer of a model that lies in pinned RAM, over the copy's limit and a warm answer together."""
    write_bert(stage, "cold", 2, BASE if stage.real else TINY)
    views = stage.open("cold")
    nbytes = sum(segment.bytes for segment in stage.blocks.segments("cold"))
    stage.blocks.lift("cold")
    for _ in range(3):
        answer(stage, views, "cold")
    limit = 0.0
    ratios: list[float] = []
    seconds: list[float] = []
    for _ in range(100 if stage.real else 5):
        warm = timed(answer, stage, views, "cold")
        stage.blocks.lower("cold")
        took = timed(_lift_and, stage, "cold", lambda: answer(stage, views, "cold"))
        if len(ratios) % 10 == 0:
            limit = nbytes / (bandwidth(stage) * 1e9)
        seconds.append(took)
        ratios.append(took / (limit + warm))
    stage.blocks.close("cold")
    report.samples["cold answers"] = {"seconds": seconds, "ratios": ratios}
    p50, p99 = statistics.median(ratios), sorted(ratios)[int((len(ratios) - 1) * 0.99 + 0.5)]
    found = [f"{statistics.median(seconds) * 1e3:.2f}", f"{p50:.2f}", f"{p99:.2f}"] if stage.real else [NOT_RUN] * 3
    columns = ("model", "cold ms, p50", "over the limit, p50", "p99")
    report.tables.append(Table("Cold answers, weights in pinned RAM", columns, [("bert-base, 128 tokens", *found)]))
    if stage.real:
        for figure, value, goal in (("p50", p50, 1.10), ("p99", p99, 1.25)):
            verdict = "reached" if value <= goal else "missed"
            figure = f"cold answer over copy limit and warm answer, {figure}"
            report.goals.append(Goal(figure, f"at most {goal} x", f"{value:.2f} x", verdict))


def _lift_and(stage: Stage, name: str, then: Callable[[], object]) -> None:
    stage.blocks.lift(name)
    then()


def _open_and_lift(stage: Stage, name: str) -> None:
    stage.open(name)
    stage.blocks.lift(name)


def from_disk(stage: Stage, report: Report) -> None:
    """Disk to device, page cache dropped, over the best raw read of the same file, and beside safetensors."""
    write_bert(stage, "disk", 3, BASE if stage.real else TINY)
    path = stage.folder / "disk" / "model.safetensors"
    nbytes = path.stat().st_size
    ours, theirs, stock = [], [], []
    for _ in range(_PAIRS if stage.real else 1):
        forget_cached(path)
        ours.append(nbytes / timed(_open_and_lift, stage, "disk") / 1e9)
        stage.blocks.close("disk")
        theirs.append(max(raw_read([path], readers) for readers in (1, 4, 8, 16)) / 1e9)
        forget_cached(path)
        stock.append(nbytes / timed(stock_load, stage, path) / 1e9)
    report.samples["disk"] = {"ours": ours, "raw": theirs, "safetensors": stock}
    columns = ("file", "berth GB/s", "best raw read GB/s", "safetensors' load_file GB/s")
    figures = [Series(tuple(each)).text(2) if stage.real else NOT_RUN for each in (ours, theirs, stock)]
    report.tables.append(Table("Disk to device", columns, [(f"{nbytes / MIB:,.0f} MiB", *figures)]))
    if stage.real:
        mine = Series(tuple(ours))
        report.goals.append(
            Goal.ratio("disk to device over the best raw read", Ratio(mine, Series(tuple(theirs))), 0.90)
        )
        report.goals.append(Goal.ratio("disk to device over safetensors", Ratio(mine, Series(tuple(stock))), 4))


def beside(stage: Stage, report: Report) -> None:
    """Bytes of the device that models take beyond their weights: 200 small ones, and BERT-base."""
    rows = []
    for kind, shape, count in (("tiny", TINY, 200), ("bert-base", BASE, 8)):
        count, shape = (count, shape) if stage.real else (5, TINY)
        more, padding, weights = _beyond(stage, kind, shape, count)
        share = (more + padding) / weights
        report.samples[f"beside {kind}"] = {"weights": weights, "more than the arena": more, "alignment": padding}
        rows.append((kind, str(count), f"{share:.3%}" if stage.real else NOT_RUN))
        if stage.real:
            verdict = "reached" if share < 0.01 else "missed"
            report.goals.append(Goal(f"device bytes beyond weights, {kind}", "under 1 %", f"{share:.3%}", verdict))
    report.tables.append(Table("Device bytes beyond weights", ("model", "how many", "of their weights"), rows))


def _beyond(stage: Stage, kind: str, shape: dict[str, int], count: int) -> tuple[int, int, int]:
    """Return device bytes taken outside the arena, bytes of alignment in it, and bytes of weights, less the first."""
    names = [f"{kind}-beside-{seed}" for seed in range(count)]
    for seed, name in enumerate(names):
        write_bert(stage, name, seed, shape)
        stage.open(name)
    stage.blocks.lift(names[0])
    extents, free = stage.blocks.on_device.capacity, stage.device.free_bytes()
    for name in names[1:]:
        stage.blocks.lift(name)
    placed = sum(segment.bytes for name in names[1:] for segment in stage.blocks.segments(name))
    weights = sum(bytes_of(stage, name) for name in names[1:])
    grown = stage.blocks.on_device.capacity - extents
    more = free - stage.device.free_bytes() - grown
    for name in names:
        stage.blocks.close(name)
        shutil.rmtree(stage.folder / name)
    return more, placed - weights, weights


if __name__ == "__main__":
    raise SystemExit(main())
