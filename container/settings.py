"""The environment, read once into one frozen object.

Every process of ours is handed the same environment and builds the same Settings from it; nothing else in the
project reads ``os.environ``. A malformed value or an unknown ``BERTH_*`` name refuses to start and names the
nearest; unknown ``SAGEMAKER_*`` names are the platform's business. The table in the README is generated from the
fields below (``python -m container.settings``).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO


class BadSetting(ValueError):
    """A variable of the environment that cannot be used; the message names it, its value and what is allowed."""


_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}iB"] = 1024**_power
    _UNITS[f"{_letter}B"] = 1000**_power


def size_bytes(text: str) -> int:
    """Return bytes for "120MiB", "2GiB", "1.5GB" or "1048576". Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)", text.strip())
    if match is None or match[2] not in _UNITS:
        raise ValueError("a size: an integer, or a number with KiB, MiB, GiB, TiB, KB, MB, GB or TB")
    return int(float(match[1]) * _UNITS[match[2]])


def _switch(*allowed: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        """Return ``text`` if it is one of those allowed. Raises ValueError."""
        if text not in allowed:
            raise ValueError("one of " + ", ".join(allowed))
        return text

    return read


def _level(text: str) -> str:
    return _switch("debug", "info", "warning", "error")(text.lower())


def _on_off(text: str) -> bool:
    return _switch("on", "off")(text) == "on"


def _true_false(text: str) -> bool:
    return text.strip().lower() == "true"


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        """Return the number. Raises ValueError outside the range."""
        if not re.fullmatch(r"\d+", text.strip()) or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return read


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda|cuda:\d+|sim:\S+@\S+/s", text):
        raise ValueError("auto, cpu, cuda, cuda:N or sim:SIZE@SIZE/s (sim:4GiB@2GB/s)")
    if text.startswith("sim:"):
        size, speed = text[4:].removesuffix("/s").split("@", 1)
        size_bytes(size), size_bytes(speed)
    return text


def _marks(text: str) -> tuple[float, float] | None:
    if text == "off":
        return None
    match = re.fullmatch(r"(\d{1,3})-(\d{1,3})", text)
    if match is None or not 0 < int(match[2]) <= int(match[1]) <= 100:
        raise ValueError("off, or HIGH-LOW in percent of the limit, as 95-85")
    return int(match[1]) / 100, int(match[2]) / 100


def _service(text: str) -> str:
    if not re.fullmatch(r"/.+\.py:\w+", text):
        raise ValueError("a file and its function or class, /path/service.py:handle")
    return text


#: The controls of SageMaker's secure mode, as DJL Serving knows them.
CONTROLS = (
    "DISALLOW_CUSTOM_INFERENCE_SCRIPTS",
    "DISALLOW_REQUIREMENTS_TXT",
    "DISALLOW_TRUST_REMOTE_CODE",
    "DISALLOW_PICKLE_FILES",
    "DISALLOW_CHAT_TEMPLATE",
)


def _controls(text: str) -> frozenset[str]:
    """A control that this build does not know is kept: the platform may name newer ones, and they are logged."""
    return frozenset(filter(None, (part.strip() for part in text.split(","))))


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(Path(part.strip()) for part in text.split(",") if part.strip())


#: Names that people try first, which SageMaker has under another.
_MEANT = {
    "BERTH_PORT": "SAGEMAKER_BIND_TO_PORT",
    "BERTH_BASE_DIR": "SAGEMAKER_BASE_DIR",
    "BERTH_MULTI_MODEL": "SAGEMAKER_MULTI_MODEL",
    "BERTH_MAX_PAYLOAD_IN_MB": "SAGEMAKER_MAX_PAYLOAD_IN_MB",
    "BERTH_MODEL_DIR": "BERTH_MODELS",
    "BERTH_MODELS_DIR": "BERTH_MODELS",
    "BERTH_TASK": "HF_TASK",
}


def _setting(name: str, read: Callable[[str], Any], default: Any, text: str, shown: str | None = None) -> Any:
    meta = {"env": name, "read": read, "text": text, "shown": shown if shown is not None else str(default)}
    return dataclasses.field(default=default, metadata=meta)


def _default_state_dir() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path("/var/lib/berth") if os.access("/var/lib/berth", os.W_OK) else Path(home) / "berth"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one server. Build with ``Settings.read(os.environ)``."""

    port: int = _setting("SAGEMAKER_BIND_TO_PORT", _whole(0, 65535), 8080, "port of the HTTP server")
    host: str = _setting("BERTH_HOST", str, "127.0.0.1", "address to listen on; the image sets 0.0.0.0")
    multi_model: bool = _setting(
        "SAGEMAKER_MULTI_MODEL", _true_false, False, "true: no model is loaded from the `model` folder at start"
    )
    base_dir: Path = _setting(
        "SAGEMAKER_BASE_DIR", Path, Path("/opt/ml"), "models are loaded only from its `models` and `model` folders"
    )
    max_payload_mib: int = _setting(
        "SAGEMAKER_MAX_PAYLOAD_IN_MB", _whole(1, 1024), 25, "largest request body, in MiB; beyond it 413"
    )
    default_accept: str = _setting(
        "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", str, "application/json", "answer's type when Accept is missing or `*/*`"
    )
    program: str = _setting("SAGEMAKER_PROGRAM", str, "inference.py", "name of the script in an archive's `code/`")
    service: str = _setting(
        "SAGEMAKER_HANDLER", _service, "", "service for archives that bring no code: `/path/service.py:handle`"
    )
    hf_task: str = _setting("HF_TASK", str, "", "task of a single model whose architecture does not tell")
    triton_model: str = _setting(
        "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME",
        str,
        "",
        "folder in the `model` folder that is the single model, where a Triton repository lies there",
    )
    device: str = _setting(
        "BERTH_DEVICE", _device, "auto", "auto, cpu, cuda, cuda:N, or sim:SIZE@SPEED/s (a rehearsal)"
    )
    memory_limit: int | None = _setting(
        "BERTH_MEMORY_LIMIT",
        size_bytes,
        None,
        "bytes of models on the device (RAM without a GPU)",
        "80 % of what is free",
    )
    host_memory_limit: int | None = _setting(
        "BERTH_HOST_MEMORY_LIMIT", size_bytes, None, "bytes of models in RAM under a GPU", "half of what is free"
    )
    eviction: Literal["sink", "platform"] = _setting(
        "BERTH_EVICTION",
        _switch("sink", "platform"),
        "sink",
        "platform: never sink, answer 507 and let SageMaker choose",
    )
    water_marks: tuple[float, float] | None = _setting(
        "BERTH_WATER_MARKS",
        _marks,
        None,
        "`95-85`: once 95 % of a tier is taken, idle models sink in the background until 85 % is",
        "off",
    )
    sharing: bool = _setting("BERTH_SHARING", _on_off, True, "equal weights of different models are kept once", "on")
    allow_code: bool = _setting("BERTH_ALLOW_CODE", _on_off, True, "off: archives that bring code are refused", "on")
    allow_pickle: bool = _setting(
        "BERTH_ALLOW_PICKLE", _on_off, True, "off: only safetensors; on: pickles with weights_only", "on"
    )
    signatures: Literal["off", "warn", "require"] = _setting(
        "BERTH_SIGNATURES",
        _switch("off", "warn", "require"),
        "off",
        "require: only archives with a `model.sig` of a known key are loaded (SECURITY.md)",
    )
    signature_keys: Path | None = _setting(
        "BERTH_SIGNATURE_KEYS", Path, None, "public key in PEM, or a folder of them, for BERTH_SIGNATURES", ""
    )
    secure_mode: bool = _setting(
        "SAGEMAKER_SECURE_MODE", _true_false, False, "true: the two variables below hold, as in DJL Serving"
    )
    security_controls: frozenset[str] = _setting(
        "SAGEMAKER_SECURITY_CONTROLS", _controls, frozenset(), "what archives may not bring: " + ", ".join(CONTROLS), ""
    )
    untrusted_channels: tuple[Path, ...] = _setting(
        "SAGEMAKER_UNTRUSTED_CHANNELS", _paths, (), "folders whose models are searched for forbidden files", ""
    )
    front_workers: int = _setting("BERTH_FRONT_WORKERS", _whole(1, 64), 1, "HTTP processes")
    queue_length: int = _setting("BERTH_QUEUE_LENGTH", _whole(1, 100_000), 100, "requests that may wait for one model")
    state_dir: Path = _setting(
        "BERTH_STATE_DIR",
        Path,
        None,
        "sockets, unpacked archives, environments",
        "/var/lib/berth or under XDG_STATE_HOME",
    )
    state_limit: int = _setting(
        "BERTH_STATE_LIMIT", size_bytes, 20 << 30, "bytes of environments kept in the state folder", "20GiB"
    )
    door: Literal["http", "mms"] = _setting(
        "BERTH_DOOR", _switch("http", "mms"), "http", "mms: multi-model-server's Java front (`serve --door mms`)"
    )
    metrics_per_model: bool = _setting(
        "BERTH_METRICS_PER_MODEL", _on_off, False, "on: /metrics counts invocations by model, too", "off"
    )
    log_level: str = _setting("BERTH_LOG_LEVEL", _level, "info", "least level that is logged")
    models_dir: Path | None = _setting(
        "BERTH_MODELS", Path, None, "folder of models to load at start (`serve --models`)", ""
    )

    @staticmethod
    def read(environ: Mapping[str, str]) -> Settings:
        """Return the settings in ``environ``. Raises BadSetting with the variable, its value and what is allowed."""
        fields = {field.metadata["env"]: field for field in dataclasses.fields(Settings)}
        for name in environ:
            if name.startswith("BERTH_") and name not in fields:
                near = difflib.get_close_matches(name, fields, n=1)
                near = [_MEANT[name]] if name in _MEANT else near
                hint = f"; did you mean {near[0]}?" if near else "."
                raise BadSetting(f"unknown setting {name}{hint} Known: {', '.join(sorted(fields))}")
        values: dict[str, Any] = {}
        for name, field in fields.items():
            text = environ.get(name)
            if text is None or text == "":
                continue
            try:
                values[field.name] = field.metadata["read"](text)
            except ValueError as error:
                raise BadSetting(f"{name}={text!r} cannot be used: expected {error}") from error
        values.setdefault("state_dir", _default_state_dir())
        settings = Settings(**values)
        settings._check_together()
        return settings

    def _check_together(self) -> None:
        """Raise BadSetting for variables that say nothing without another."""
        if self.secure_mode and not (self.security_controls and self.untrusted_channels):
            raise BadSetting(
                "SAGEMAKER_SECURE_MODE=true needs SAGEMAKER_SECURITY_CONTROLS and SAGEMAKER_UNTRUSTED_CHANNELS"
            )
        if self.signatures != "off" and self.signature_keys is None:
            raise BadSetting(f"BERTH_SIGNATURES={self.signatures} needs BERTH_SIGNATURE_KEYS, a public key or a folder")

    @staticmethod
    def of_process(**changes: str) -> Settings:
        """Return the settings of this process's own environment; ``changes`` are made there first, for its children.

        Raises BadSetting.
        """
        os.environ.update(changes)
        return Settings.read(os.environ)

    @property
    def run_dir(self) -> Path:
        """The folder of this server's sockets; a state folder too deep for a socket's 108 bytes gives way to /tmp."""
        wanted = self.state_dir / f"run-{self.port}"
        if len(str(wanted)) <= 80:
            return wanted
        digest = hashlib.sha256(str(wanted).encode()).hexdigest()[:16]
        folder = tempfile.gettempdir()
        return Path(folder if len(folder) <= 40 else "/tmp") / f"berth-{os.getuid()}-{digest}"

    @property
    def max_payload_bytes(self) -> int:
        """The body limit in bytes."""
        return self.max_payload_mib << 20

    @property
    def models_roots(self) -> tuple[Path, ...]:
        """The folders that a model's url must lie under."""
        roots = (self.base_dir / "models", self.base_dir / "model", self.state_dir / "unpacked")
        return (*roots, self.models_dir) if self.models_dir else roots


def child_environment(**changes: str) -> dict[str, str]:
    """Return the environment for a process that is started: ours, with our packages importable, and no hub.

    OMP_WAIT_POLICY: a lane's idle threads must not burn the core of the lane beside it.
    """
    here = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    fixed = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **fixed, **changes}


def wants_colour(stream: TextIO) -> bool:
    """Return whether ``stream`` is a terminal whose user has not asked for plain text (no-color.org, TERM=dumb)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def table() -> str:
    """Return the README's table of settings, in Markdown."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(Settings):
        meta = field.metadata
        shown = f"`{meta['shown']}`" if meta["shown"] and " " not in meta["shown"] else meta["shown"]
        rows.append(f"| `{meta['env']}` | {shown} | {meta['text']} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
