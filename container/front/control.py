"""The platform's calls about models: load, list, describe, unload; bodies as multi-model-server gives them.

POST /models and DELETE outlive a caller that hangs up: half a load helps nobody, and the platform asks again.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol
from urllib.parse import parse_qsl

import msgspec

from container import log
from container.errors import BadPageToken, BadRequest, Internal
from container.front.errors import Answer
from container.front.routes import check_name
from container.wire import messages as m

_log = log.get(__name__)
_MAX_QUERY_FIELDS = 64
_MAX_TOKEN_CHARS = 1024


class Engine(Protocol):
    """What these calls need of ``wire.client.Client``."""

    async def call(self, request: m.Request) -> m.Reply:
        """Return the reply to ``request``. Raises ServingError."""


async def load(engine: Engine, body: bytes, query: bytes, target_model: str) -> Answer:
    """POST /models: register and bring up. Raises BadRequest, BadName, and what the engine raises."""
    wanted = _load_fields(body, query)
    name = check_name(wanted["model_name"])
    reply = await _to_the_end(engine, m.Load(0, name, wanted["url"]))
    if not isinstance(reply, m.Loaded):
        raise unexpected(reply)
    _log_target("loaded", name, target_model)
    return _json({"status": "Workers scaled"})


async def list_models(engine: Engine, query: bytes) -> Answer:
    """GET /models: one page of the ready models. Raises BadPageToken."""
    fields = _query(query)
    limit = fields.get("limit", "100")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= 100):
        raise BadPageToken(f"limit is {limit[:40]!a}; it must be a whole number from 1 to 100")
    token = fields.get("next_page_token", "")
    if len(token) > _MAX_TOKEN_CHARS:
        raise BadPageToken("next_page_token is not one that this server gave out")
    reply = await engine.call(m.List(0, int(limit), token))
    if not isinstance(reply, m.Page):
        raise unexpected(reply)
    page: dict[str, Any] = {"models": [{"modelName": entry.name, "modelUrl": entry.url} for entry in reply.models]}
    if reply.next_token:
        page["nextPageToken"] = reply.next_token
    return _json(page)


async def describe(engine: Engine, name: str) -> Answer:
    """GET /models/{name}: where its url, state and bytes are. Raises ModelNotFound."""
    reply = await engine.call(m.Describe(0, name))
    if not isinstance(reply, m.Description):
        raise unexpected(reply)
    fields: dict[str, Any] = {
        "modelName": reply.name,
        "modelUrl": reply.url,
        "state": reply.state,
        "tier": reply.tier,
        "bytes": reply.bytes,
        "sharedBytes": reply.shared_bytes,
    }
    optional = {
        "cacheBytes": reply.cache_bytes,
        "tokenizerBytes": reply.tokenizer_bytes,
        "reason": reply.reason,
        "task": reply.task,
        "kind": reply.kind,
    }
    fields.update({key: value for key, value in optional.items() if value})
    return _json(fields)


async def unload(engine: Engine, name: str, target_model: str) -> Answer:
    """DELETE /models/{name}: the bytes are back when this returns. Raises ModelNotFound."""
    reply = await _to_the_end(engine, m.Unload(0, name))
    if not isinstance(reply, m.Unloaded):
        raise unexpected(reply)
    _log_target("unloaded", name, target_model)
    return _json({"status": f'Model "{name}" unregistered', "freedBytes": reply.freed_bytes})


def _log_target(event: str, name: str, target_model: str) -> None:
    """Tell which archive the platform's opaque ``name`` stands for; the engine logs the rest."""
    if target_model:
        _log.info(event, extra={"fields": {"model": name, "target_model": target_model}})


async def _to_the_end(engine: Engine, request: m.Request) -> m.Reply:
    return await asyncio.shield(asyncio.ensure_future(engine.call(request)))


def _load_fields(body: bytes, query: bytes) -> dict[str, str]:
    """Return model_name and url from the JSON body or, as multi-model-server's clients send them, the query."""
    fields: dict[str, Any] = dict(_query(query))
    if body.strip():
        try:
            given = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # brackets by the thousand
            raise BadRequest(f"the body of POST /models is not JSON: {error}") from error
        if not isinstance(given, dict):
            raise BadRequest('the body of POST /models must be one JSON object, {"model_name": ..., "url": ...}')
        fields.update(given)
    for key in ("model_name", "url"):
        if not isinstance(fields.get(key), str) or not fields[key]:
            raise BadRequest(f'POST /models needs "{key}", a string: {{"model_name": ..., "url": ...}}')
    return fields


def _query(query: bytes) -> dict[str, str]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError as error:
        raise BadRequest(f"the query has more than {_MAX_QUERY_FIELDS} fields") from error
    return dict(pairs)


def _json(fields: dict[str, Any]) -> Answer:
    body = msgspec.json.encode(fields)
    return Answer(200, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))], body)


def unexpected(reply: m.Reply) -> Internal:
    """Return the error for a reply of a kind that was not asked for; it is logged."""
    _log.error("the engine answered with a %s", type(reply).__name__)
    return Internal(Internal.TEXT)
