"""One private package for each archive, so that two archives may both have an ``inference.py`` and a ``utils.py``.

    archive7_cats                 the package: its __path__ is the archive's code/
    archive7_cats.inference       code/inference.py, loaded by the real import machinery, with its locks
    archive7_cats.utils           what "import utils" means inside it, at the top or in a function called later

The loader gives every module of an archive a ``__builtins__`` of its own whose ``__import__`` looks at home first: the
meaning that ``sys.path[0]`` has for a script, but for this archive alone. Functions keep the builtins of the module
they were defined in, so it holds for lazy imports on any thread. ``importlib.import_module`` called from an archive's
module looks at home first, too.

Pickles know classes by bare names (``utils.Net``). While an archive loads (``aliased``) such names are found as well:
aliases in ``sys.modules``, under one lock, only for names that no installed package has, gone when the load ends.
In a process that one archive has for itself (``live_alone``) they are found for good, on every thread.
Does not cover: bare names in pickles read after the load in a process that archives share, or by other threads there
(what fails for this is tried again in a process of its own, ``model/apart``); extension modules that can be loaded once
per process.
"""

from __future__ import annotations

import builtins
import importlib
import itertools
import linecache
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader, SourcelessFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from container.errors import BadArchive

_import = builtins.__import__
_import_module = importlib.import_module
_serial = itertools.count(1)
_OWNER = "__namespace__"


class Namespace:
    """The modules of one archive; ``name`` is the model's and only shows in the names of modules.

    root: the package, when it is that of the process which spawned this one.
    """

    def __init__(self, name: str, code_dir: Path, root: str = "") -> None:
        self.root = root or f"archive{next(_serial)}_{re.sub(r'[^A-Za-z0-9]', '_', name)[:40]}"
        self._folder = f"{code_dir.parent if code_dir.name == 'code' else code_dir}/"
        self.paths = [str(code_dir)]
        self._home: dict[str, bool] = {}
        self.builtins: dict[str, Any] = {**vars(builtins), "__import__": self._import, _OWNER: self}
        spec = ModuleSpec(self.root, None, is_package=True)
        spec.submodule_search_locations = self.paths
        self._forget_files()
        _finder.install()
        _finder.namespaces[self.root] = self
        sys.modules[self.root] = module_from_spec(spec)

    def load(self, program: str) -> ModuleType:
        """Return the module of ``program``: "inference.py", "handler" or "package.module", loaded once.

        Raises BadArchive if there is no such file; a module that it imports and that is missing raises
        ModuleNotFoundError, as whatever else its code raises.
        """
        name = program.removesuffix(".py").replace("/", ".")
        private = f"{self.root}.{name}"
        try:
            return _import_module(private)
        except ModuleNotFoundError as error:
            # The program itself, or a package it should lie in, against something that it imports.
            if error.name is not None and f"{private}.".startswith(f"{error.name}."):
                there = sorted(path.name for path in Path(self.paths[0]).glob("*.py")) or ["no .py file"]
                raise BadArchive(f"code/ has no {program}; it has {', '.join(there[:10])}") from error
            raise

    def close(self) -> None:
        """Remove every module of the archive from the process, with what its globals hold.

        The globals are emptied: caches of other packages (typing, logging) may keep a class or function of the archive,
        and through it the globals, alive for good. No code of the archive may be running any more.
        """
        _finder.namespaces.pop(self.root, None)
        gone = [
            sys.modules.pop(name, None) for name in list(sys.modules.copy()) if f"{name}.".startswith(f"{self.root}.")
        ]
        self._drop_aliases()
        for module in gone:
            if module is not None:
                vars(module).clear()
        self._forget_files()

    def globals(self) -> list[dict[str, Any]]:
        """Return what the archive's modules keep in global variables."""
        modules = [module for name, module in sys.modules.copy().items() if name.startswith(f"{self.root}.")]
        return [{key: value for key, value in vars(each).items() if key[:2] != "__"} for each in modules]

    @contextmanager
    def aliased(self) -> Iterator[None]:
        """Let bare names of this archive be found on this thread, for what unpickles by name; one archive at a time."""
        with _finder.lock:
            _finder.guest, _finder.thread = self, threading.get_ident()
            try:
                yield
            finally:
                _finder.guest = None
                if not _finder.serves(self):
                    self._drop_aliases()

    def lacks(self, name: str | None) -> bool:
        """Return whether ``name``, a module that was looked for in vain, is one of this archive's."""
        parts = (name or ".").split(".")
        return any(
            Path(path, *parts).is_dir() or Path(path, *parts).with_suffix(".py").is_file() for path in self.paths
        )

    def at_home(self, head: str) -> bool:
        """Return whether ``head``, the first part of a module's name, is this archive's."""
        known = self._home.get(head)
        if known is None:
            spec = PathFinder.find_spec(f"{self.root}.{head}", self.paths)
            # A folder without __init__.py (data, weights) is a package only if nothing else has the name, see below;
            # built-in modules come before any path in Python itself.
            known = spec is not None and spec.loader is not None and head not in sys.builtin_module_names
            self._home[head] = known
        if known or head in sys.modules:
            return known
        return self._adopted(head) or self._bare_folder(head)

    def elsewhere(self, head: str) -> bool:
        """Return whether Python, or a package that is installed, has a module ``head``."""
        if head in sys.builtin_module_names or head in sys.stdlib_module_names:
            return True
        paths = [path for path in sys.path if not f"{path}/".startswith(self._folder)]
        spec = PathFinder.find_spec(head, paths)
        return spec is not None and spec.loader is not None

    def spec(self, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
        """Return the spec of private module ``name``, found in its parent's ``path``."""
        spec = PathFinder.find_spec(name, path)
        if spec is None or not isinstance(spec.loader, (SourceFileLoader, SourcelessFileLoader)):
            return spec
        kind = _SourceLoader if isinstance(spec.loader, SourceFileLoader) else _CompiledLoader
        loader = kind(name, str(spec.loader.path))
        loader.home = self.builtins
        spec.loader = loader
        return spec

    def bare(self, error: ModuleNotFoundError) -> None:
        """Say in ``error`` the names that the author knows."""
        if error.name is not None and error.name.startswith(f"{self.root}."):
            error.name = error.name.removeprefix(f"{self.root}.")
            error.msg = error.msg.replace(f"{self.root}.", "")

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """``__import__`` of this archive's modules."""
        head = name.partition(".")[0]
        try:
            # C code (pickle) asks with an empty list, and looks into sys.modules under the bare name afterwards.
            by_c = type(fromlist) is list and not fromlist and not level
            if level or (by_c and _finder.serves(self)) or not self.at_home(head):
                return _import(name, globals, locals, fromlist or (), level)
            if by_c and name not in sys.modules:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            module = _import(f"{self.root}.{name}", globals, locals, fromlist or (), 0)
            return module if fromlist else sys.modules[f"{self.root}.{head}"]
        except ModuleNotFoundError as error:
            self.bare(error)
            raise

    def _adopted(self, head: str) -> bool:
        """Take over folders of the archive that its code has put on sys.path; say whether ``head`` is in one."""
        new = [path for path in sys.path if path.startswith(self._folder) and path not in self.paths]
        if not new:
            return False
        self.paths.extend(new)
        self._home.clear()
        return self.at_home(head)

    def _bare_folder(self, head: str) -> bool:
        spec = PathFinder.find_spec(f"{self.root}.{head}", self.paths)
        found = spec is not None and (spec.loader is not None or not self.elsewhere(head))
        if found:
            self._home[head] = True
        return found

    def _drop_aliases(self) -> None:
        for name in _finder.aliases:
            sys.modules.pop(name, None)
        _finder.aliases.clear()
        self._sweep()

    def _sweep(self) -> None:
        """Remove modules that were imported from the archive's folder past this namespace, under bare names."""
        for name, module in sys.modules.copy().items():
            # Not getattr: modules that load their parts lazily would start to.
            file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
            if isinstance(file, str) and file.startswith(self._folder) and not _finder.owner(name):
                sys.modules.pop(name, None)

    def _forget_files(self) -> None:
        """Drop what the import machinery has cached of the archive's folders."""
        for cache in (sys.path_importer_cache, linecache.cache):
            for path in [path for path in list(cache) if f"{path}/".startswith(self._folder)]:
                cache.pop(path, None)


class _SourceLoader(SourceFileLoader):
    """Runs a module of an archive with the archive's builtins, and writes nothing into the archive."""

    home: dict[str, Any]

    def exec_module(self, module: ModuleType) -> None:
        """Run the module with the archive's builtins."""
        module.__dict__["__builtins__"] = self.home
        super().exec_module(module)

    def set_data(self, *_: Any, **__: Any) -> None:
        """Write no __pycache__: the archive is not ours, and its newest file time is its identity."""


class _CompiledLoader(SourcelessFileLoader):
    """The same for a ``.pyc`` without its source."""

    home: dict[str, Any]

    def exec_module(self, module: ModuleType) -> None:
        """Run the module with the archive's builtins."""
        module.__dict__["__builtins__"] = self.home
        super().exec_module(module)


class _AliasLoader(Loader):
    """Makes a bare name mean a private module that exists already."""

    def __init__(self, private: str) -> None:
        self._private = private
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the private module itself, for both names to mean one."""
        module = _import_module(self._private)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module as it is: it has run under its own name."""
        module.__spec__ = self._spec  # the machinery has just put the alias's there


class _Finder(MetaPathFinder):
    """Finds private modules, and bare names for the one archive that is loading."""

    def __init__(self) -> None:
        self.namespaces: dict[str, Namespace] = {}
        self.lock = threading.RLock()
        self.guest: Namespace | None = None
        self.thread = 0
        self.aliases: set[str] = set()
        self.alone = False

    def install(self) -> None:
        """Stand in front of Python's own finders, once."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
            importlib.import_module = _import_module_at_home

    def owner(self, name: str) -> Namespace | None:
        """Return the archive that module ``name`` belongs to, None if it is no private one."""
        return self.namespaces.get(name.partition(".")[0])

    def serves(self, namespace: Namespace) -> bool:
        """Say whether bare names mean those of ``namespace`` on this thread."""
        if self.guest is namespace and self.thread == threading.get_ident():
            return True
        return self.alone and list(self.namespaces.values()) == [namespace]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a private module, or of a bare name of the archive that is loading here; else None."""
        owner = self.owner(fullname)
        if owner is not None:
            return owner.spec(fullname, path)
        guest = next((each for each in list(self.namespaces.values()) if self.serves(each)), None)
        if guest is None:
            return None
        head = fullname.partition(".")[0]
        if not guest.at_home(head) or guest.elsewhere(head):
            return None
        self.aliases.add(fullname)
        return ModuleSpec(fullname, _AliasLoader(f"{guest.root}.{fullname}"))


_finder = _Finder()


def live_alone() -> None:
    """Let bare names be found at any time and on any thread: this process has one archive, and ends with it."""
    _finder.alone = True


def alone() -> bool:
    """Return whether ``live_alone`` holds here."""
    return _finder.alone


def packages() -> list[tuple[str, list[str]]]:
    """Return the private packages of this process and their folders, for a process that it spawns."""
    return [(namespace.root, namespace.paths) for namespace in list(_finder.namespaces.values())]


def restore(carried: list[tuple[str, list[str]]]) -> None:
    """Register in this process what ``packages`` returned in the one that spawned it."""
    for root, paths in carried:
        if root not in _finder.namespaces:
            Namespace("", Path(paths[0]), root).paths.extend(paths[1:])


def home_of(scope: dict[str, Any]) -> Namespace | None:
    """Return the archive that a module with the globals ``scope`` belongs to, None if to none."""
    own = scope.get("__builtins__")
    return own.get(_OWNER) if isinstance(own, dict) else None


def _import_module_at_home(name: str, package: str | None = None) -> ModuleType:
    """``importlib.import_module``, which for a caller inside an archive looks at home first."""
    namespace = home_of(sys._getframe(1).f_globals)
    if namespace is None or name.startswith(".") or not namespace.at_home(name.partition(".")[0]):
        return _import_module(name, package)
    try:
        return _import_module(f"{namespace.root}.{name}")
    except ModuleNotFoundError as error:
        namespace.bare(error)
        raise
