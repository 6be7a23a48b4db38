"""Calls of pip from authors' code, met softly.

Scripts written for one container per model often begin with ``subprocess.call(["pip", "install", ...])``. In a process
that archives share that would change the packages under everybody else, so nothing is installed: the command is
replaced by one that does nothing and succeeds, the script goes on with the server's own packages, and the log says what
to do instead. ``pip list`` and its like, which change nothing, run as they are.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import PurePath
from types import ModuleType
from typing import Any

from container import log

_log = log.get(__name__)
_PIP = re.compile(r"(pip|pip3|pip3\.\d+|pip\.exe|uv)")
_PYTHON = re.compile(r"python(3(\.\d+)?)?(\.exe)?")
_SHELL = re.compile(r"(ba|da|z)?sh")
_CHANGES = {"install", "uninstall", "sync"}
_NOTHING = [sys.executable, "-I", "-S", "-c", ""]

_popen_init = subprocess.Popen.__init__
_system = os.system


def changes_packages(command: Any) -> bool:
    """Return whether ``command``, as subprocess or os.system take it, installs or removes packages with pip."""
    if isinstance(command, (bytes, os.PathLike)):
        command = os.fsdecode(command)
    if isinstance(command, str):
        return any(_words_do(words) for words in _split(command))
    if not isinstance(command, Sequence):
        return False
    return _words_do([os.fsdecode(word) for word in command if isinstance(word, (str, bytes, os.PathLike))])


def _split(line: str) -> list[list[str]]:
    """The simple commands of a shell line, each as its words."""
    lexer = shlex.shlex(line.replace("\n", ";"), posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    try:
        tokens = list(lexer)
    except ValueError:  # unbalanced quotes: the shell will say so
        return []
    commands: list[list[str]] = [[]]
    for token in tokens:
        if set(token) <= set("();<>|&"):
            commands.append([])
        else:
            commands[-1].append(token)
    return commands


def _words_do(words: list[str]) -> bool:
    while words and (re.fullmatch(r"\w+=.*", words[0]) or words[0] in ("sudo", "env", "exec", "nohup")):
        words = words[1:]
    if not words:
        return False
    program, rest = PurePath(words[0]).name, words[1:]
    if _SHELL.fullmatch(program) and "-c" in rest[:-1]:
        return changes_packages(rest[rest.index("-c") + 1])
    if _PYTHON.fullmatch(program) or words[0] == sys.executable:
        if "pip" not in rest or rest[max(0, rest.index("pip") - 1)] != "-m":
            return False
        program, rest = "pip", rest[rest.index("pip") + 1 :]
    return bool(_PIP.fullmatch(program)) and not _CHANGES.isdisjoint(rest)


def _report(command: Any) -> None:
    shown = command if isinstance(command, str) else " ".join(str(word) for word in command)
    _log.warning(
        "this model's code calls `%s`: nothing was installed, because its process is shared; it goes on with the "
        "server's packages. If it needs others, name them in code/requirements.txt: it then gets an environment of its "
        "own",
        shown,
    )


def _init(self: subprocess.Popen[Any], args: Any, *rest: Any, **options: Any) -> None:
    if changes_packages(args):
        _report(args)
        args = _NOTHING
        options["shell"] = False
        options.pop("executable", None)
    _popen_init(self, args, *rest, **options)


def _soft_system(command: Any) -> int:
    if changes_packages(command):
        _report(command)
        return 0
    return _system(command)


def soften(main: ModuleType) -> None:
    """Let pip called as a module of this process install nothing; for ``pip._internal.cli.main`` once imported."""
    run = main.main

    def soft_main(args: list[str] | None = None) -> int:
        """``pip`` that returns 0 where it would change packages."""
        if args is not None and not _CHANGES.isdisjoint(args):
            _report(["pip", *args])
            return 0
        return int(run(args))

    main.main = soft_main  # type: ignore[attr-defined]


def refuse() -> None:
    """From now on pip installs nothing from this process. May be called again."""
    subprocess.Popen.__init__ = _init  # type: ignore[method-assign]
    os.system = _soft_system


def allow() -> None:
    """Let commands run as they are again."""
    subprocess.Popen.__init__ = _popen_init  # type: ignore[method-assign]
    os.system = _system
