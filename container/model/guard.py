"""State of the process that authors' code may change and that berth puts back.

One process runs the code of many archives. What one of them does to the default dtype, precision flags, thread count,
``sys.path``, working directory or environment would change the others' answers, so after each call of authors' code
the process is as it was at ``take_baseline``. The baseline is taken once, not per call: calls overlap, and a call that
began while another had something changed would "restore" that change for good.

Two calls that really run at the same moment can see each other's changes; a process of one's own (``isolation: own``)
is the cure. While any archive loads, nothing is put back until it is done: a load may take minutes and change the
directory or the default dtype for that time (transformers does), and a short call of a neighbour must not pull it away.
Does not cover: random seeds, signal handlers, warning filters, what an author stores in other packages.

A process that takes no baseline (the engine, which runs our own handlers only) pays nothing.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from container import log
from container.model import after_import, installs, shims, spawned

_log = log.get(__name__)


class _Fact(NamedTuple):
    """One thing to put back: how it is called in the log, how to read and to write it."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _environment() -> dict[bytes, bytes]:
    # The mapping under os.environ, already encoded: comparing it takes 1 µs, comparing os.environ 60.
    return os.environ._data  # type: ignore[attr-defined, no-any-return]


def _write_environment(wanted: dict[bytes, bytes]) -> None:
    now = dict(_environment())
    for name in now.keys() - wanted.keys():
        os.unsetenv(name)
        _environment().pop(name, None)
    for name, value in wanted.items():
        if now.get(name) != value:
            os.putenv(name, value)
            _environment()[name] = value


def _cwd() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - a Path is made and compared a hundred times slower
    except FileNotFoundError:
        return ""


def _write_path(wanted: list[str]) -> None:
    sys.path[:] = wanted


_PROCESS = (
    _Fact("environment", _environment, _write_environment),
    _Fact("sys.path", lambda: sys.path, _write_path),
    _Fact("working directory", _cwd, os.chdir),
)


def _torch_facts(torch: Any) -> tuple[_Fact, ...]:
    return (
        _Fact("default dtype", torch.get_default_dtype, torch.set_default_dtype),
        _Fact("float32 matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        _Fact(
            "deterministic algorithms",
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        ),
        _Fact(
            "cudnn.benchmark",
            lambda: torch.backends.cudnn.benchmark,
            lambda on: setattr(torch.backends.cudnn, "benchmark", on),
        ),
        _Fact("grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
        _Fact("thread count", torch.get_num_threads, torch.set_num_threads),
    )


class _Guard:
    """The baseline of this process and what is running on top of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loads = 0
        self._reported: set[tuple[str, str]] = set()
        self._wanted: list[tuple[_Fact, Any]] = [
            (fact, value.copy() if isinstance(value := fact.read(), (dict, list)) else value) for fact in _PROCESS
        ]
        self._has_torch = False
        self.notice_torch(after_import.imported("torch"))

    def notice_torch(self, torch: Any) -> None:
        """Take torch into the baseline, once, as soon as it is there and before an author can have touched it."""
        if self._has_torch or torch is None:
            return
        with self._lock:
            if not self._has_torch:
                self._wanted += [(fact, fact.read()) for fact in _torch_facts(torch)]
                self._has_torch = True

    def begin_load(self) -> None:
        """Put nothing back from now on: an archive loads."""
        with self._lock:
            self._loads += 1

    def end_load(self, name: str) -> None:
        """Put back what the load of ``name`` changed, if no other load is under way."""
        with self._lock:
            self._loads -= 1
        self.restore(name)

    def restore(self, name: str) -> None:
        """Put back what is not as at the baseline, unless an archive is being loaded."""
        if self._loads:
            return
        for fact, wanted in self._wanted:
            if fact.read() != wanted:
                self._put_back(fact, wanted, name)

    def _put_back(self, fact: _Fact, wanted: Any, name: str) -> None:
        with self._lock:
            if self._loads or fact.read() == wanted:
                return
            try:
                fact.write(wanted)
            except OSError as error:  # the working directory itself is gone
                _log.error("the %s could not be put back: %s", fact.name, error)
                return
        if (name, fact.name) not in self._reported:
            self._reported.add((name, fact.name))
            _log.warning("the code of model %s changed the %s of the process; it was put back", name, fact.name)


_guard: _Guard | None = None


def take_baseline(*, allow_installs: bool = False) -> None:
    """Remember the state of this process; call once, before any author's code runs.

    allow_installs: False in a process that archives share: their calls of pip then install nothing.
    """
    global _guard
    guard = _guard = _Guard()
    actions: dict[str, after_import.Action] = {
        "torch": guard.notice_torch,
        "transformers.tokenization_utils_tokenizers": shims.read_vocabulary_files,
        "transformers.pipelines": shims.refuse_dropped_tasks,
        "multiprocessing.spawn": spawned.carry,
    }
    if not allow_installs:
        installs.refuse()
        actions["pip._internal.cli.main"] = installs.soften
    after_import.install(actions)


def drop_baseline() -> None:
    """Forget the baseline and let pip be called again; for tests."""
    global _guard
    _guard = None
    installs.allow()
    after_import.remove()


class calling:
    """``with calling(name):`` around a call of the code of model ``name``; puts the process back afterwards."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, *raised: object) -> None:
        if _guard is not None:
            _guard.restore(self._name)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Around the import and load of model ``name``; puts the process back once nothing loads any more."""
    guard = _guard
    if guard is None:
        yield
        return
    guard.begin_load()
    try:
        yield
    finally:
        guard.end_load(name)
