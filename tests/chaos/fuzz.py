"""Atheris on the parsers: any bytes are read or refused with an error of ours, and nothing else.

python -m tests.chaos.fuzz                     every parser for a few seconds; prints a table
python -m tests.chaos.fuzz npy -runs=100000    one parser, with options of libFuzzer
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

SECONDS = 2


def targets() -> dict[str, tuple[Callable[[bytes], object], list[bytes]]]:
    """Return each parser with some inputs to start from. Imports what is fuzzed, so that it is instrumented."""
    import numpy as np

    from container.archive import manifest, mar
    from container.front import control, headers, routes
    from container.memory import sizes
    from container.payload import Payload
    from container.protocol import codecs, media, npy, v2, v2_header
    from container.wire import frames
    from container.wire import messages as m
    from handlers import body

    array = npy.write(np.zeros(1))
    request = b'{"inputs":[{"name":"a","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}]}'
    weights = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'

    def typed(data: bytes) -> object:
        kind, _, rest = data.partition(b"\n")
        return codecs.decode(rest, kind.decode("latin-1"))

    def binary(data: bytes) -> object:
        size, _, rest = data.partition(b"\n")
        return v2.read(rest, f"{v2_header.BINARY_TYPE};json-header-size={size.decode('latin-1')}")

    def invoke(data: bytes) -> object:
        return headers.payload_of(data, {b"accept": data, b"content-type": data}, data, "application/json")

    return {
        "media": (lambda data: media.parse(data.decode("latin-1")), [b"text/csv; charset=utf-8"]),
        "accept": (lambda data: media.rank(data.decode("latin-1"), ["application/json"]), [b"a/b;q=0.1, */*"]),
        "codecs": (typed, [b"application/json\n[1]", b"text/csv\n1,2", b"application/x-npy\n" + array]),
        "npy": (npy.read, [array]),
        "npz": (npy.read_many, [npy.write_many({"a": npy.read(array)})]),
        "v2": (lambda data: v2.read(data, "application/json"), [request]),
        "v2 binary": (binary, [b"%d\n" % len(request) + request + b"\0" * 4]),
        "frames": (
            lambda data: frames.FrameReader(frames.REQUESTS, 1 << 20).feed(data),
            [bytes(frames.encode(m.Invoke(1, "a", Payload(b"[1]"), 1.0)))],
        ),
        "manifest": (manifest.read_berth_json, [b'{"task": "embeddings", "batch": {"max_size": 2}}']),
        "mar": (mar.read_manifest, [b'{"model": {"handler": "a:b", "modelName": "x"}}']),
        "yaml": (mar.read_config, [b"batchSize: 4\nmaxBatchDelay: 100\n"]),
        "safetensors": (lambda data: sizes.parse_header(data, len(data) + 16, "x"), [weights]),
        "routes": (lambda data: routes.match(data, "POST"), [b"/models/a/invoke", b"/v2/models/a/versions/1/infer"]),
        "headers": (invoke, [b"application/json"]),
        "query": (lambda data: control._load_fields(b"", data), [b"model_name=a&url=b"]),
        "load": (lambda data: control._load_fields(data, b""), [b'{"model_name": "a", "url": "b"}']),
        "body": (lambda data: body.read(Payload(data)), [b'{"inputs": ["a"], "parameters": {"top_k": 1}}']),
    }


def fuzz(name: str, options: list[str]) -> None:
    """Fuzz one parser in this process; never returns."""
    import atheris

    with atheris.instrument_imports(include=["container", "handlers"], enable_loader_override=False):
        parse, seeds = targets()[name]
    from container.errors import ServingError
    from container.wire.frames import FrameError

    def one(data: bytes) -> None:
        try:
            parse(data)
        except (ServingError, FrameError) as error:
            str(error).encode("utf-8", "strict" if isinstance(error, FrameError) else "replace")

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds):
            with open(f"{corpus}/{number}", "wb") as file:  # noqa: PTH123
                file.write(seed)
        atheris.Setup([sys.argv[0], "-max_len=4096", "-rss_limit_mb=1500", "-timeout=10", *options, corpus], one)
        atheris.Fuzz()


class Result(NamedTuple):
    """One parser, how many inputs were tried, what was found ("" = nothing)."""

    parser: str
    tried: int
    found: str


def _run(name: str, seconds: int) -> Result:
    """Fuzz one parser in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "tests.chaos.fuzz", name, f"-max_total_time={seconds}"]
        ended = subprocess.run(
            [*command, "-print_final_stats=1", f"-artifact_prefix={place}/", "-seed=1"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds + 60,
            check=False,
        )
    tried = re.search(r"number_of_executed_units: (\d+)", ended.stderr)
    count = int(tried[1]) if tried else 0
    return Result(name, count, "" if ended.returncode == 0 and count else ended.stderr[-1500:] or "nothing was tried")


def run_all(seconds: int = SECONDS) -> list[Result]:
    """Fuzz every parser, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda name: _run(name, seconds), targets()))


def table(results: list[Result]) -> str:
    """Return the results in Markdown, with what was found below."""
    lines = ["| parser | inputs tried | found |", "|---|---|---|"]
    lines += [f"| {each.parser} | {each.tried:,} | {'see below' if each.found else 'nothing'} |" for each in results]
    lines += [f"\n--- {each.parser}\n{each.found}" for each in results if each.found]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Fuzz one parser, or all with a table; return 1 if anything was found."""
    if arguments:
        fuzz(arguments[0], arguments[1:])
    results = run_all()
    print(table(results))
    return int(any(each.found for each in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
