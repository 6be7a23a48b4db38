"""Services of multi-model-server and TorchServe as handlers.

    def handle(data, context)                        once with None, to load; then a list in, a list of that length out
    class Service: initialize(context), handle(data, context)

``data`` holds one dict for each request: {"body": bytearray}, or the named parts of a form. The archive's folder is the
working directory of every call. Unlike at home, an ``initialize`` that raises fails the load.
"""

from __future__ import annotations

import email
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl

from container.archive import mar
from container.errors import BadAnswer, BadArchive, BadRequest
from container.handler import Context as Surroundings
from container.handler import Handler
from container.model import torchserve, workdir
from container.model.imports import Namespace
from container.model.service_context import Context
from container.payload import JSON, Payload
from container.protocol import codecs, media

Data = dict[str, Any]
Entry = Callable[[list[Data] | None, Context], Any]


@dataclass(frozen=True, slots=True)
class Request:
    """One input: the request, and what of it is handed over."""

    payload: Payload
    data: Data


class ServiceHandler(Handler):
    """The service that ``program`` names: "service.py:handle", "service", "package.module:Class"."""

    speaks_v2 = True  # authors' services get what came

    def __init__(self, program: str, namespace: Namespace) -> None:
        self._program = program
        self._namespace = namespace
        self._entry: Entry | None = None
        self._context: Context | None = None
        self._folder = Path()
        #: The object of a class-style service; berth looks for its weights in here.
        self.service: Any = None

    def load(self, model_dir: Path, context: Surroundings) -> None:
        """Import the service in its folder and let it load its model."""
        self._folder = model_dir
        manifest, config = _read(model_dir)
        properties = {**context.properties, "gpu_id": _gpu(context.device), "model_dir": str(model_dir)}
        properties |= {"server_name": "MMS", "server_version": "1.1.11"}
        self._context = Context(context.name, properties, manifest, config)
        torchserve.offer()
        with workdir.inside(model_dir):
            file, _, name = self._program.partition(":")
            found = find(self._import(file), name)
            if isinstance(found, type):
                self.service = found()
                self._entry = self.service.handle
                if hasattr(self.service, "initialize"):
                    self.service.initialize(self._context)
            else:
                self._entry = found
                found(None, self._context)

    def decode(self, payload: Payload) -> Request:
        """Return the request with its body, or the parts of a form by name."""
        kind = media.parse(payload.content_type).type
        if kind == "multipart/form-data":
            return Request(payload, _parts(payload))
        if kind == "application/x-www-form-urlencoded":
            return Request(payload, dict(parse_qsl(payload.body.decode("utf-8", "replace"), keep_blank_values=True)))
        return Request(payload, {"body": bytearray(payload.body)})

    def predict(self, batch: list[Any]) -> list[Any]:
        """Return an answer for each request, with the status and headers that the service has set."""
        assert self._entry is not None and self._context is not None, "loaded first"
        requests: list[Request] = batch
        self._context.begin([request.payload for request in requests])
        with workdir.inside(self._folder):
            results: list[Any] = self._entry([request.data for request in requests], self._context)
        if not isinstance(results, (list, tuple)) or len(results) != len(requests):
            return results  # the pipeline says what is wrong with it
        return [self._answer(index, result) for index, result in enumerate(results)]

    def encode(self, output: Any, accept: str) -> Payload:
        """Return the answer, which is made already."""
        assert isinstance(output, Payload)
        return output

    def _import(self, file: str) -> ModuleType:
        module = file.removesuffix(".py").rpartition("/")[2]
        try:
            return self._namespace.load(module)
        except BadArchive as error:
            if module in torchserve.DEFAULT_HANDLERS:
                raise BadArchive(
                    f"handler {module} is one of TorchServe's own; name torchserve in the archive's requirements.txt "
                    f"and a file with `from ts.torch_handler.{module} import ...` in the manifest"
                ) from error
            raise BadArchive(f"the handler {self._program!r} is not in the archive: {error}") from error

    def _answer(self, index: int, result: Any) -> Payload | BadAnswer:
        assert self._context is not None
        status, _ = self._context.get_response_status(index)
        headers = dict(self._context.get_response_headers(index))
        content_type = headers.pop("content-type", "")
        if isinstance(result, (bytes, bytearray)):
            body, usual = bytes(result), "application/octet-stream"
        elif isinstance(result, str):
            body, usual = result.encode("utf-8", "replace"), "text/plain; charset=utf-8"
        else:
            try:
                body, usual = codecs.encode(result, JSON)
            except BadAnswer as error:
                return error
        return Payload(body, content_type or usual, headers=headers, status=status)


def find(module: ModuleType, name: str) -> Any:
    """Return the function or class that serves: the one named, else ``handle``, else the only class with a handle.

    Raises BadArchive.
    """
    found = getattr(module, name or "handle", None)
    if callable(found):
        return found
    file = Path(module.__file__ or module.__name__).name
    if name:
        raise BadArchive(f"{file} has no {name}, which the handler names")
    own = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    services = [each for each in own if callable(getattr(each, "handle", None))]
    last = [each for each in services if not any(other is not each and issubclass(other, each) for other in services)]
    if len(last) != 1:
        names = ", ".join(sorted(each.__name__ for each in last))
        raise BadArchive(
            f"{file} must have a function `handle` or one class with `handle`; "
            + (f"it has several: {names}; name one, {file}:{last[0].__name__}" if last else "it has neither")
        )
    return last[0]


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The archive's manifest and configuration, {} for what is not there."""
    place = folder / mar.MANIFEST
    manifest = mar.read_manifest(place.read_bytes()) if place.is_file() else {}
    name = mar.config_name(manifest)
    config = folder / name
    return manifest, mar.read_config(config.read_bytes(), name) if config.is_file() else {}


def _gpu(device: str) -> int | None:
    kind, _, number = device.partition(":")
    return int(number or 0) if kind == "cuda" else None


def _parts(payload: Payload) -> Data:
    """The parts of multipart/form-data by name: bytes of files, text of fields."""
    head = f"Content-Type: {payload.content_type}\r\n\r\n".encode("latin-1", "replace")
    message = email.message_from_bytes(head + payload.body)
    if not message.is_multipart():
        raise BadRequest("the body is not multipart/form-data: its boundary is not in it")
    data: Data = {}
    for part in message.walk():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            data[name] = bytearray(content) if part.get_filename() else content.decode("utf-8", "replace")
    return data
