"""``berth serve``: starts engine and front, keeps the registry, restarts what dies, reaps, stops in time.

    supervisor (PID 1 in the image)
      ├─ engine   dies: a new one gets the registry and answers again; the front says 503 meanwhile
      └─ front    gunicorn; dies: started again

The registry lives here, in memory, for as long as this process does: nothing on disk outlives what it describes. One
waitid loop reaps everything, orphans of orphans included, as PID 1 must. What hangs inside a model's code is killed at
the deadline that its lane has written on a page they share (``model/watch``).
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import selectors
import shutil
import signal
import socket
import sys
import time
from collections import deque
from typing import TextIO

import msgspec

from container import kept, log
from container.kept import Kept
from container.lifeline import adopt_orphans, end_group
from container.model import watch
from container.settings import Settings
from container.wire import frames
from container.wire import messages as m
from container.wire.server import make_run_folder

_log = log.get(__name__)

#: SIGTERM to exit: under the 30 s after which the platform kills.
STOP_S = 25.0
FRONT_STOP_S = 21.0
#: How often the page is read.
WATCH_S = 0.25
#: BERTH_DOOR -> the program that speaks HTTP.
FRONTS = {"http": "container.front.main", "mms": "container.mms.door"}
#: More engine deaths than this within the window: the instance is not worth keeping, /ping says so.
DEATHS, WINDOW_S = 3, 300.0
#: An engine that the system refuses to start this often in a row, before there ever was one, ends the server.
TRIES = 6
#: An engine that dies within a second of the one before is started again a second later: it must not fill the log.
PAUSE_S = 1.0
#: The front is started again after this long; one that dies sooner than it lived to answer ends the server.
FRONT_LEAST_S = 10.0


class Supervisor:
    """One server. ``run`` returns its exit status."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._selector = selectors.DefaultSelector()
        self._registry: dict[str, m.Registered] = {}
        self._marks: dict[str, m.Marked] = {}
        self._control: socket.socket | None = None
        self._reader = frames.FrameReader(frames.CONTROL)
        self._engine = Kept("the engine")
        self._front = Kept("the HTTP server")
        self._engine_deaths: deque[float] = deque(maxlen=DEATHS + 1)
        self._patience = watch.Patience()
        self._killed: set[int] = set()
        self._stop_by_s: float | None = None
        self._status = 0
        self._unhealthy = settings.run_dir / "unhealthy"
        self._lock: TextIO | None = None

    def run(self, first: list[m.Registered]) -> int:
        """Serve until SIGTERM or SIGINT; ``first`` is loaded at start. Return 0, or 1 with the reason in the log."""
        self._prepare()
        adopt_orphans()
        wake, wake_write = socket.socketpair()
        for end in (wake, wake_write):
            end.setblocking(False)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self._selector.register(wake, selectors.EVENT_READ, "signals")
        self._registry = {entry.name: entry for entry in first}
        self._engine.want()
        while self._engine.pid or self._front.pid or self._stop_by_s is None:
            self._start_what_is_due()
            for key, _ in self._selector.select(self._patience_s()):
                if key.data == "signals":
                    self._on_signals(wake.recv(4096))
                else:
                    self._on_control()
            self._end_what_hangs()
            self._enforce()
        shutil.rmtree(self._settings.run_dir, ignore_errors=True)
        _log.info("stopped with status %d", self._status)
        return self._status

    def _prepare(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _log.debug("descriptors: %d, was %d", hard, soft)
        run_dir = self._settings.run_dir
        try:
            self._settings.state_dir.mkdir(parents=True, exist_ok=True)
            make_run_folder(run_dir)
            self._lock = (run_dir / "lock").open("w")
        except OSError as error:
            raise SystemExit(
                f"cannot write to the state folder {self._settings.state_dir}: {error.strerror}; set BERTH_STATE_DIR "
                "to one that can be written (a read-only container: docker run --tmpfs /var/lib/berth)"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(
                f"another berth server runs on port {self._settings.port} with the same state folder; "
                "stop it, or set SAGEMAKER_BIND_TO_PORT or BERTH_STATE_DIR"
            ) from None
        self._unhealthy.unlink(missing_ok=True)
        self._page = watch.Page(run_dir / "page", create=True)
        try:
            self._check_port()
        except SystemExit:
            shutil.rmtree(run_dir, ignore_errors=True)
            raise

    def _check_port(self) -> None:
        """Raise SystemExit if the port is taken: gunicorn would try for seconds, and only after the engine is up."""
        family = socket.AF_INET6 if ":" in self._settings.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._settings.host, self._settings.port))
            except OSError as error:
                mend = "stop what uses the port, or set SAGEMAKER_BIND_TO_PORT (berth serve --port)"
                if error.errno == errno.EACCES:
                    mend = "ports below 1024 are the superuser's: set SAGEMAKER_BIND_TO_PORT (berth serve --port)"
                elif error.errno != errno.EADDRINUSE:
                    mend = "set BERTH_HOST (berth serve --host) to an address of this machine, or 0.0.0.0 for all"
                raise SystemExit(
                    f"cannot listen on {self._settings.host}:{self._settings.port}: {error.strerror}; {mend}"
                ) from None

    def _patience_s(self) -> float:
        return WATCH_S if self._stop_by_s is None else 0.1

    # ---------------------------------------------------------------- children

    def _start_what_is_due(self) -> None:
        if self._stop_by_s is not None:
            return
        if self._engine.is_due():
            self._start_engine()
        if self._front.is_due():
            command = [sys.executable, "-m", FRONTS[self._settings.door], "--parent", str(os.getpid())]
            if self._front.start(command):
                _log.info("serving on http://%s:%d", self._settings.host, self._settings.port)

    def _start_engine(self) -> None:
        """Spawn an engine and tell it the registry."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            self._engine.failed(error)
            return
        command = [sys.executable, "-m", "container.engine.main", "--control", str(theirs.fileno())]
        started = self._engine.start([*command, "--parent", str(os.getpid())], pass_fds=(theirs.fileno(),))
        theirs.close()
        if not started:
            ours.close()
            if not self._engine.born_s and self._engine.failures >= TRIES:
                self._give_up("the engine does not start")
            return
        self._control, self._reader = ours, frames.FrameReader(frames.CONTROL)
        self._selector.register(ours, selectors.EVENT_READ, "control")
        try:
            told: list[m.Control] = [*self._marks.values(), *self._registry.values(), m.Begin()]
            for each in told:
                ours.sendall(frames.encode(each))
        except OSError as error:
            _log.error("the engine died before it took the registry over: %s", error)

    # ------------------------------------------------------------------ events

    def _on_control(self) -> None:
        """Read what the engine tells; its hanging up is its death, which SIGCHLD reports."""
        if self._control is None:  # and has reported a moment ago
            return
        try:
            data = self._control.recv(1 << 16)
        except ConnectionResetError:  # it died with words of ours unread
            data = b""
        if not data:
            self._selector.unregister(self._control)
            self._control.close()
            self._control = None
            return
        for message in self._reader.feed(data):
            match message:
                case m.Registered():
                    self._registry[message.name] = message
                case m.Marked():
                    self._marks[message.model_dir] = message
                case m.Forgotten():
                    self._registry.pop(message.name, None)
                case m.Up():
                    self._on_up(message)
                case m.Fatal():
                    self._give_up(message.reason)

    def _on_up(self, up: m.Up) -> None:
        _log.info("engine is ready on %s with %d models registered", up.device, len(self._registry))
        if not self._front.pid:
            self._front.want()

    def _on_signals(self, numbers: bytes) -> None:
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._stop()
        self._reap()

    def _reap(self) -> None:
        """Collect everything that has died, whoever's child it was, and end what it has left behind."""
        while True:
            try:
                died = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if died is None:
                return
            end_group(died.si_pid)  # before its number can be another's
            os.waitid(os.P_PID, died.si_pid, os.WEXITED)
            if died.si_pid == self._engine.pid:
                self._engine_died(died)
            elif died.si_pid == self._front.pid:
                self._front_died(died)

    def _engine_died(self, died: os.waitid_result) -> None:
        self._engine.ended()
        while self._control is not None:  # what it had told is still in the socket, and its end comes last
            self._on_control()
        if self._stop_by_s is not None:
            return
        if kept.refused(died):
            self._give_up("the engine refuses its settings (above)", 2)
            return
        now = time.monotonic()
        inside = self._page.clear(died.si_pid)
        self._page.clear_all()  # its children die with it, and are to blame for nothing
        self._judge(inside, kept.how(died))
        if not inside:  # only deaths that no model is named for tell of the instance
            self._engine_deaths.append(now)
        named = [each.model for each in inside] or "no model"
        _log.error(
            "the engine died (%s) inside %s; starting a new one with %d models",
            kept.how(died),
            named,
            len(self._registry),
        )
        if len(self._engine_deaths) > DEATHS and now - self._engine_deaths[0] < WINDOW_S:
            self._say_unhealthy(f"the engine died {len(self._engine_deaths)} times within {WINDOW_S:.0f} s")
            if self._settings.door == "mms":
                self._give_up("Java's /ping cannot tell the platform that this instance is not worth keeping")
                return
        if not self._front.pid and len(self._engine_deaths) > DEATHS:
            killed = (
                " (killed: has the container the memory for it? --memory 1g is enough)" if kept.killed(died) else ""
            )
            self._give_up(f"the engine does not start{killed}")
            return
        again = len(self._engine_deaths) > 1 and now - self._engine_deaths[-2] < PAUSE_S
        self._engine.want(PAUSE_S if again else 0.0)

    def _say_unhealthy(self, reason: str) -> None:
        """Let /ping answer 503 with ``reason``; on a full disk the empty file does."""
        try:
            self._unhealthy.write_text(reason)
        except OSError as error:
            _log.error("%s; the reason could not be written (%s)", reason, error.strerror)

    def _front_died(self, died: os.waitid_result) -> None:
        self._front.ended()
        if self._stop_by_s is not None:
            return
        failed = died.si_code == os.CLD_EXITED and died.si_status != 0  # not: killed, or Java died under the mms door
        if failed and time.monotonic() - self._front.born_s < FRONT_LEAST_S:
            why = "above" if kept.refused(died) else f"{kept.how(died)}; is port {self._settings.port} free?"
            self._give_up(f"the HTTP server does not start ({why})", 2 if kept.refused(died) else 1)
            return
        _log.error("the HTTP server died (%s); starting a new one", kept.how(died))
        self._front.want()

    def _end_what_hangs(self) -> None:
        """Kill every process that is inside a model's code past its deadline, or stands still; its parent judges it."""
        over = self._patience.over(self._page.inside(), time.monotonic())
        self._killed.intersection_update(inside.pid for inside in over)
        for inside in over:
            if inside.pid in self._killed:
                continue
            self._killed.add(inside.pid)
            what = f"model {inside.model} did not come back from {inside.phase}" if inside.model else "it stands still"
            _log.error("killing process %d: %s", inside.pid, what)
            kept.send(inside.pid, signal.SIGKILL)

    def _judge(self, inside: list[watch.Inside], how: str) -> None:
        """The engine died inside these models' code: a new engine gets the models, and the reason to keep one out."""
        for name in {each.model for each in inside}:  # two lanes may have been in one model: that is one death
            entry = self._registry.get(name)
            if entry is not None:
                deaths = entry.deaths + 1
                oldest = min((each for each in inside if each.model == name), key=lambda each: each.deadline_s)
                reason = watch.verdict(oldest, deaths, how, time.monotonic()) or entry.reason
                self._registry[name] = msgspec.structs.replace(entry, deaths=deaths, reason=reason)

    # -------------------------------------------------------------------- stop

    def _give_up(self, why: str, status: int = 1) -> None:
        """Stop with an exit status that says so. status: 2 where a setting is to be mended."""
        _log.error("giving up: %s", why)
        self._status = status
        self._stop()

    def _stop(self) -> None:
        """First the front finishes what it has, then the engine goes."""
        if self._stop_by_s is None:
            _log.info("stopping")
            self._stop_by_s = time.monotonic() + STOP_S
            self._front.signal(signal.SIGTERM)

    def _enforce(self) -> None:
        """While stopping: the engine goes when the front has, and nobody outstays the limit."""
        if self._stop_by_s is None:
            return
        left_s = self._stop_by_s - time.monotonic()
        if self._front.pid and left_s < STOP_S - FRONT_STOP_S:
            self._front.signal(signal.SIGKILL, group=True)
        if not self._front.pid:
            self._engine.signal(signal.SIGTERM if left_s > 1.0 else signal.SIGKILL)


def serve(settings: Settings, first: list[m.Registered]) -> int:
    """Run one server in this process until it is told to stop; return the exit status."""
    log.configure("supervisor", settings.log_level)
    return Supervisor(settings).run(first)
