"""From what a trial found to what a person reads: words, figures, how many would fit. Pure."""

from __future__ import annotations

from typing import NamedTuple

from container.engine.report import Report


class Instance(NamedTuple):
    """A machine to rent. device_bytes: of its GPU, 0 without one. Sizes as AWS gives them."""

    name: str
    ram_bytes: int
    device_bytes: int = 0


#: A few sizes that multi-model endpoints run on (dg/multi-model-support).
INSTANCES = (
    Instance("ml.m5.xlarge", 16 << 30),
    Instance("ml.m5.4xlarge", 64 << 30),
    Instance("ml.g4dn.xlarge", 16 << 30, 16 << 30),
    Instance("ml.g5.xlarge", 16 << 30, 24 << 30),
)
#: What berth gives to models where nothing else is said (BERTH_MEMORY_LIMIT), and what it keeps for itself before that.
SHARE = 0.8
OWN_BYTES = 1 << 30

PLACES = {
    "engine": "the engine: batched, its weights mapped and shared",
    "guests": "the process that archives' code shares",
    "own": "a process of its own",
}
PHASES = {
    "unpack": "unpacking it",
    "layout": "its layout",
    "load": "loading it",
    "answer": "asking it",
    "batch": "asking it several times at once",
    "sink": "sinking it",
    "unload": "unloading it",
}


def fit(model_bytes: int, instance: Instance) -> int:
    """Return how many models of ``model_bytes`` are up at a time on ``instance``; more may be registered."""
    room = instance.device_bytes or instance.ram_bytes - OWN_BYTES
    return int(room * SHARE) // model_bytes if model_bytes > 0 else 0


def counts(report: Report) -> list[tuple[str, int]]:
    """Return how many such models are up at a time on each of INSTANCES; nothing where its bytes are not known."""
    up = max(report.bytes.values(), default=0)
    return [(instance.name, fit(up, instance)) for instance in INSTANCES] if up else []


def times(report: Report) -> list[tuple[str, str]]:
    """Return what took how long, in words; what was not measured is left out."""
    phases = ", ".join(f"{name} {ms:.0f}" for name, ms in report.times_ms.items() if ms >= 1)
    rows = [("load", report.load_ms, f" ({phases})" if phases else ""), ("first answer", report.first_ms, "")]
    rows += [("warm answer", report.warm_ms, ""), ("answer after sinking", report.rise_ms, "")]
    return [(what, f"{ms:.1f} ms{more}" if ms < 100 else f"{ms:.0f} ms{more}") for what, ms, more in rows if ms >= 0]


def advice(report: Report) -> list[str]:
    """Return what is no fault but worth knowing."""
    found = list(report.notes)
    if not report.request and report.fault is None:
        found.append(
            "it was loaded but not asked: its code names no example; give one with --payload, in berth.json's warmup, "
            "or as the handler's `example`"
        )
    if report.kind == "mar":
        found.append(
            "its service runs with the archive's folder as working directory; where the kernel grants threads none of "
            'their own (docker\'s default profile), services take turns: {"isolation": "own"} in berth.json avoids it'
        )
    if report.varies:
        found.append("the same request is answered differently each time, so answers could not be compared")
    if report.fault is None and not any(report.bytes.values()):
        found.append("berth sees no weights of it in memory (no torch tensors); a handler may set self.weights_bytes")
    slow_ms = max(report.load_ms, 0) + max(report.first_ms, 0)
    if slow_ms > 30_000:
        found.append(f"load and first answer take {slow_ms / 1e3:.0f} s; the platform's callers wait 60 s")
    return found
