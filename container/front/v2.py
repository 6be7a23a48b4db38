"""The KServe v2 protocol (Open Inference Protocol) as far as it is not inference: health, metadata, repository.

Bodies as Triton gives them, so that tritonclient reads them. All on the event loop: a load may take minutes, and would
hold one of the few threads of the pages. Inference goes the front's usual way; here is what its headers mean on /v2.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from container.errors import BadInput, BadRequest, ModelExists, ModelMissing, ModelNotFound
from container.front import control, routes
from container.front.control import Engine
from container.front.errors import Answer, Headers
from container.front.headers import answer_of, fields_of
from container.front.health import SINGLE_MODEL, Health
from container.front.intake import Receive
from container.payload import JSON, Payload
from container.protocol import v2_header
from container.settings import Settings
from container.wire import messages as m

Scope = dict[str, Any]
ReadBody = Callable[[dict[bytes, bytes], Receive], Awaitable[bytes]]

_EXTENSIONS = ["binary_tensor_data", "model_repository"]
_HEADER = v2_header.HEADER.lower().encode()
_OCTETS = b"application/octet-stream"
_PAGE = 100
#: Of models without versions.
_ONLY_VERSION = "1"


class _Parameters(msgspec.Struct):
    """What a caller of load may say: where the model is; by default it is looked for by its name."""

    url: str = ""
    config: msgspec.Raw = msgspec.Raw(b"")


class _Load(msgspec.Struct):
    parameters: _Parameters = msgspec.field(default_factory=_Parameters)


class V2:
    """The operations. read_body: returns the body of a request with these headers, which may be small only."""

    def __init__(self, engine: Engine, settings: Settings, health: Health, read_body: ReadBody) -> None:
        self._engine = engine
        self._settings = settings
        self._health = health
        self._read_body = read_body
        self.operations: dict[str, Callable[[str, Scope, Receive], Awaitable[Answer]]] = {
            routes.V2_SERVER: self._server,
            routes.V2_LIVE: self._live,
            routes.V2_READY: self._ready,
            routes.V2_MODEL: self._model,
            routes.V2_VERSION: self._model,
            routes.V2_MODEL_READY: self._model_ready,
            routes.V2_VERSION_READY: self._model_ready,
            routes.V2_INDEX: self._index,
            routes.V2_LOAD: self._load,
            routes.V2_UNLOAD: self._unload,
        }

    async def _server(self, _: str, __: Scope, ___: Receive) -> Answer:
        return _json({"name": "berth", "version": metadata.version("berth"), "extensions": _EXTENSIONS})

    async def _live(self, _: str, __: Scope, ___: Receive) -> Answer:
        return _health("live", self._health.reason(time.monotonic(), loading_counts=False))

    async def _ready(self, _: str, __: Scope, ___: Receive) -> Answer:
        return _health("ready", self._health.reason(time.monotonic()))

    async def _model(self, name: str, scope: Scope, _: Receive) -> Answer:
        found = await self._described(name, scope)
        return _json(
            {
                "name": name,
                "versions": [found.version or _ONLY_VERSION],
                "platform": f"berth_{found.task or found.kind}",
                "inputs": _tensors(found.inputs),
                "outputs": _tensors(found.outputs),
            }
        )

    async def _model_ready(self, name: str, scope: Scope, _: Receive) -> Answer:
        """Ready is also what lies on disk: it rises when it is called."""
        found = await self._described(name, scope)
        return _health("ready", "" if found.state == "ready" else f"model {name!r} is {found.state} {found.reason}")

    async def _described(self, name: str, scope: Scope) -> m.Description:
        found = await self._engine.call(m.Describe(0, engine_name(self._settings, name)))
        if not isinstance(found, m.Description):
            raise control.unexpected(found)
        version, served = routes.version_of(scope["raw_path"]), found.version or _ONLY_VERSION
        if version not in ("", served):
            raise ModelNotFound(f"model {name!r} has no version {version[:40]!r}; served is {served}")
        return found

    async def _index(self, _: str, __: Scope, ___: Receive) -> Answer:
        """Every model that is ready. Without versions, which may be left out: each model would be asked for its own."""
        found: list[dict[str, str]] = []
        token = ""
        while True:
            page = await self._engine.call(m.List(0, _PAGE, token))
            if not isinstance(page, m.Page):
                raise control.unexpected(page)
            found += [{"name": entry.name, "state": "READY", "reason": ""} for entry in page.models]
            token = page.next_token
            if not token:
                return _json(found)

    async def _load(self, name: str, scope: Scope, receive: Receive) -> Answer:
        """Register ``name`` and bring it up; one that is up already stays as it is, and the answer is Triton's 200."""
        body = await self._read_body(fields_of(scope["headers"]), receive)
        url = _url_in(body) or str(await asyncio.to_thread(_find, self._settings, name))
        with contextlib.suppress(ModelExists):
            await control.load(self._engine, msgspec.json.encode({"model_name": name, "url": url}), b"", "")
        return _empty()

    async def _unload(self, name: str, _: Scope, __: Receive) -> Answer:
        await control.unload(self._engine, engine_name(self._settings, name), "")
        return _empty()


def engine_name(settings: Settings, name: str) -> str:
    """Return the name under which the engine knows ``name``: the single model has that of its folder, too."""
    return SINGLE_MODEL if name == settings.triton_model and not settings.multi_model else name


def infer_type(fields: dict[bytes, bytes], version: str) -> bytes:
    """Return the Content-Type under which the engine is asked. Raises BadRequest for a header size that is none.

    Whatever the caller named a JSON body, the model must know that it is v2; ``version`` goes along as a parameter.
    """
    given = fields.get(b"content-type", b"").decode("latin-1")
    size = fields.get(_HEADER)
    if size is not None:
        given = v2_header.content_type(v2_header.size_of(size.decode("latin-1"), v2_header.HEADER))
    elif not v2_header.is_binary(given):
        given = v2_header.JSON_TYPE
    return f"{given};version={version}".encode("latin-1") if version else given.encode("latin-1")


def infer_answer(payload: Payload, request_id: bytes) -> Answer:
    """Return ``payload`` as plain HTTP clients expect it: octets with the size of the JSON in a header of its own."""
    answer = answer_of(payload, request_id)
    size = v2_header.header_size(payload.content_type)
    if size is None:
        return answer
    headers = [(name, _OCTETS if name == b"content-type" else value) for name, value in answer.headers]
    return Answer(answer.status, [*headers, (_HEADER, b"%d" % size)], answer.body)


def _url_in(body: bytes) -> str:
    """The folder that the body of a load names, "" if it names none. Raises BadRequest, BadInput."""
    try:
        wanted = msgspec.json.decode(body, type=_Load) if body.strip() else _Load()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f'the body is not {{"parameters": {{...}}}}: {error}') from error
    if wanted.parameters.config:
        raise BadInput("a config in the request is not taken: write it into the model's config.pbtxt")
    return wanted.parameters.url


def _find(settings: Settings, name: str) -> Path:
    """The folder of ``name`` where models lie: that of ``serve --models``, or the platform's."""
    models = settings.base_dir / "models" / name
    places = [models / "model", models, settings.base_dir / "model" / name]
    if settings.models_dir is not None:
        places.insert(0, settings.models_dir / name)
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise ModelMissing(
            f"no model {name!r} in the repository: no folder of that name in the `models` or `model` folder of "
            "SAGEMAKER_BASE_DIR, nor in that of `berth serve --models`; put it there, "
            'or say where it is: {"parameters": {"url": ...}}'
        )
    return found


def _tensors(ports: list[m.Port]) -> list[dict[str, Any]]:
    return [{"name": each.name, "datatype": each.datatype, "shape": each.shape} for each in ports]


def _health(field: str, reason: str) -> Answer:
    """Clients go by the status; the body says why."""
    return _json({field: False, "error": reason} if reason else {field: True}, 503 if reason else 200)


def _json(fields: Any, status: int = 200) -> Answer:
    body = msgspec.json.encode(fields)
    return Answer(status, [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(body))], body)


def _empty() -> Answer:
    headers: Headers = [(b"content-type", JSON.encode()), (b"content-length", b"0")]
    return Answer(200, headers, b"")
