"""``make soak MINUTES=10``: mixed traffic, loads, evictions and faults; every answer checked, every figure flat.

python -m tests.soak --minutes 10             prints progress and a table; exit 1 if anything was wrong or crept
python -m tests.soak --minutes 60 --keep      also keeps table, samples and plot under bench/results
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import transformers

from bench import machine
from bench.report import RESULTS
from tests.chaos.traffic import Model
from tests.server import Server, running
from tests.soak import outcome
from tests.soak.census import Census
from tests.soak.crew import Caller, Crew, Excuses, Log
from tests.soak.faults import Faults, Visits
from tests.soak.models import Asked, residents, visitors

#: Bytes of models that fit, as a part of all that are registered.
ROOM = 0.6
#: In the log's tracebacks that are as they should be: of code that archives bring.
AUTHORS = ("no such luck",)


def main(argv: list[str] | None = None) -> int:
    """Run one soak; return 1 if something was wrong."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=25.0, help="requests a second (default %(default)s)")
    parser.add_argument("--keep", action="store_true", help="write the results under bench/results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    looked = machine.look()
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        (base / "tmp").mkdir()
        run = soak(base, options.minutes * 60, options.rate)
    report = outcome.report(run, options.minutes)
    command = shlex.join(["python", "-m", "tests.soak", *arguments])
    print(report.text(looked, command))
    if options.keep:
        page = report.keep(looked, command)
        plot = page.with_suffix(".svg")
        plot.write_text(outcome.plot(run))
        print(f"kept: {page} {plot} under {RESULTS}")
    return int(run.failed)


def soak(base: Path, seconds: float, per_s: float) -> outcome.Run:
    """Run a server under ``base`` for ``seconds``; return what came of it."""
    models, guests = residents(), visitors()
    limit = _prepare(base, models, guests)
    with running(base, BERTH_MEMORY_LIMIT=str(limit), TMPDIR=str(base / "tmp")) as server:
        _load_all(server, models)
        excuses, log = Excuses(), Log()
        run = outcome.Run(seconds, per_s, limit, log, Census(server))
        crew = Crew(server, models, excuses, log, per_s)
        visits = Visits(server, guests, excuses, log, every_s=max(1.0, 50 / per_s))
        faults = Faults(server, models, excuses, log, every_s=min(20.0, seconds / 40), third_s=seconds / 3)
        _watch(run, faults, visits)
        faults.stop()
        visits.stop()
        crew.stop()
        run.note(faults, visits, server)
        _last_look(server, models, excuses, run)
    return run


def _prepare(base: Path, models: dict[str, Model], guests: dict[str, Model]) -> int:
    """Write every model; return the memory limit, by what they take in a server without one."""
    with running(base) as server:
        for name, model in {**models, **guests}.items():
            model.write(server.folder(name))
            assert not isinstance(model, Asked) or model.tells_apart, f"{name} gives two questions the same answer"
        _load_all(server, models)
        sizes = {name: server.describe(name)["bytes"] for name in models}
    own = sum(sizes[name] for name in ("packaged", "hangs-alone", "hangs"))
    rest = sum(sizes.values()) - own
    own += sizes["hangs-alone"] - sizes["hangs"]  # it will have a process of its own, too
    print(f"... {len(models)} models of {sum(sizes.values()) >> 20} MiB, {sizes}", file=sys.stderr, flush=True)
    return own + int(ROOM * rest)


def _load_all(server: Server, models: dict[str, Model]) -> None:
    for name in models:
        answer = server.load(name)
        if answer.status_code != 200:
            raise SystemExit(f"{name} does not load: {answer.text}\n{server.log()[-2000:]}")


@contextmanager
def _paced(seconds: float, every_s: float) -> Iterator[Iterator[float]]:
    """Yield times from now on, ``every_s`` apart, for ``seconds``."""
    began = time.monotonic()

    def ticks() -> Iterator[float]:
        while (now := time.monotonic() - began) < seconds:
            yield now
            time.sleep(max(0.0, every_s - (time.monotonic() - began - now)))

    yield ticks()


def _watch(run: outcome.Run, faults: Faults, visits: Visits) -> None:
    """Sample and tell how it goes until the time is over."""
    told_s = 0.0
    with _paced(run.seconds, max(1.0, min(5.0, run.seconds / 200))) as ticks:
        for at_s in ticks:
            run.census.take()
            if at_s - told_s >= 30:
                told_s = at_s
                print(f"... {outcome.progress(run, faults, visits)}", file=sys.stderr, flush=True)


def _last_look(server: Server, models: dict[str, Model], excuses: Excuses, run: outcome.Run) -> None:
    """Every model is there and right, and nothing is in flight."""
    lost = sorted(set(models).symmetric_difference(server.names()))
    if lost:
        run.log.add_wrong(f"not listed, or listed and not loaded: {lost}")
    caller = Caller(server, excuses, run.log, iter(range(3_000_000_000, 3_001_000_000)))
    for name, model in models.items():
        caller.ask(name, model)
    caller.close()
    time.sleep(1.5)  # the fronts tell what they counted once a second
    text = server.http.get("/metrics").text
    figure = float(text.partition("\nberth_requests_in_flight ")[2].split("\n")[0] or "nan")
    if figure != 0:
        run.log.add_wrong(f"{figure} requests are in flight when nobody asks")
    for line in server.log_lines():
        if "Traceback" in str(line) and not any(cause in str(line) for cause in AUTHORS):
            run.log.add_wrong(f"a traceback that is no author's: {str(line)[:1500]}")


if __name__ == "__main__":
    sys.exit(main())
