"""The document behind /openapi.json, as data; ``tests/front/test_openapi.py`` compares it with the route table."""

from __future__ import annotations

from typing import Any

from container.front.errors import TABLE

Document = dict[str, Any]

_ANY_BODY = {"description": "whatever the model takes", "content": {"*/*": {"schema": {}}}}
_NAME = {
    "name": "model_name",
    "in": "path",
    "required": True,
    "description": "the name given to POST /models",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,256}$"},
}


def _header(name: str, text: str) -> Document:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}


def _query(name: str, text: str, schema: Document) -> Document:
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


_INVOKE_HEADERS = [
    _header("Accept", "media types of the answer, with q-values; missing or */*: the server's default"),
    _header("X-Amzn-SageMaker-Accept", "stands in for a missing Accept"),
    _header("X-Amzn-SageMaker-Inference-Id", "id of the request; echoed, and written into log lines"),
    _header("X-Amzn-SageMaker-Custom-Attributes", "handed to the model as it is"),
    _header("X-Amzn-SageMaker-Target-Model", "only logged: the path names the model"),
]


def _object(description: str, properties: Document, required: list[str] | None = None) -> Document:
    schema = {"type": "object", "properties": properties, "required": required or sorted(properties)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _ref(name: str) -> Document:
    return {"$ref": f"#/components/schemas/{name}"}


def _text(description: str, media_type: str) -> Document:
    return {"description": description, "content": {media_type: {"schema": {"type": "string"}}}}


def _failures(*statuses: int) -> Document:
    """Return the responses for error statuses, each naming the reasons that may stand in its body."""
    found: Document = {}
    for status in statuses:
        reasons = ", ".join(code for code, row in TABLE.items() if row.status == status)
        content = {"application/json": {"schema": _ref("Error")}}
        found[str(status)] = {"description": f"reason: {reasons}", "content": content}
    return found


_STRING: Document = {"type": "string"}
_NUMBER: Document = {"type": "integer"}
_MODEL_ENTRY: Document = {
    "type": "object",
    "properties": {"modelName": _STRING, "modelUrl": _STRING},
    "required": ["modelName", "modelUrl"],
}
_MODEL: Document = {
    "type": "object",
    "properties": {
        "modelName": _STRING,
        "modelUrl": _STRING,
        "state": {"type": "string", "enum": ["loading", "ready", "draining", "quarantined"]},
        "tier": {"type": "string", "enum": ["device", "host", "disk"]},
        "bytes": {"type": "integer", "description": "all bytes of the model"},
        "sharedBytes": {"type": "integer", "description": "the part of them that other models use too"},
        "reason": {"type": "string", "description": "why it is quarantined"},
        "task": _STRING,
        "kind": _STRING,
    },
    "required": ["modelName", "modelUrl", "state", "tier", "bytes", "sharedBytes"],
}
_ERROR: Document = {
    "type": "object",
    "properties": {
        "code": {"type": "integer", "description": "the HTTP status"},
        "type": {"type": "string", "enum": sorted({row.type for row in TABLE.values()})},
        "message": {"type": "string", "maxLength": 2048},
        "reason": {"type": "string", "enum": sorted(TABLE), "description": "stable; programs may depend on it"},
    },
    "required": ["code", "type", "message", "reason"],
}

_INVOKE_FAILURES = _failures(400, 404, 406, 413, 415, 500, 503, 504, 507)

PATHS: Document = {
    "/ping": {
        "get": {
            "operationId": "ping",
            "summary": "May this instance get traffic? Answered without asking the engine",
            "responses": {
                "200": _object("healthy", {"status": _STRING}),
                "503": _object("unhealthy, and why", {"status": _STRING, "reason": _STRING}),
            },
        }
    },
    "/invocations": {
        "post": {
            "operationId": "invocations",
            "summary": "Invoke the single model, the one in the `model` folder",
            "parameters": _INVOKE_HEADERS,
            "requestBody": _ANY_BODY,
            "responses": {"200": _ANY_BODY, **_INVOKE_FAILURES},
        }
    },
    "/models": {
        "get": {
            "operationId": "list_models",
            "summary": "The ready models, sorted by name",
            "parameters": [
                _query("limit", "models a page", {"type": "integer", "minimum": 1, "maximum": 100, "default": 100}),
                _query("next_page_token", "`nextPageToken` of the page before", _STRING),
            ],
            "responses": {
                "200": _object(
                    "one page; no nextPageToken: the last",
                    {"models": {"type": "array", "items": _MODEL_ENTRY}, "nextPageToken": _STRING},
                    ["models"],
                ),
                **_failures(400, 503),
            },
        },
        "post": {
            "operationId": "load_model",
            "summary": "Load the model in a folder under a name",
            "parameters": [
                _query("model_name", "stands in for the body's", _STRING),
                _query("url", "stands in for the body's", _STRING),
            ],
            "requestBody": {
                "description": "keys that only multi-model-server knows are accepted and have no effect",
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "properties": {"model_name": _NAME["schema"], "url": _STRING},
                            "required": ["model_name", "url"],
                        }
                    }
                },
            },
            "responses": {
                "200": _object("it answers", {"status": _STRING}),
                **_failures(400, 404, 409, 413, 500, 503, 507),
            },
        },
    },
    "/models/{model_name}": {
        "get": {
            "operationId": "describe_model",
            "summary": "One model: its url, state, tier and bytes",
            "parameters": [_NAME],
            "responses": {
                "200": {"description": "the model", "content": {"application/json": {"schema": _ref("Model")}}},
                **_failures(400, 404, 503),
            },
        },
        "delete": {
            "operationId": "unload_model",
            "summary": "Unload; its bytes are back when the answer comes",
            "parameters": [_NAME],
            "responses": {
                "200": _object("unloaded", {"status": _STRING, "freedBytes": _NUMBER}),
                **_failures(400, 404, 503),
            },
        },
    },
    "/models/{model_name}/invoke": {
        "post": {
            "operationId": "invoke_model",
            "summary": "Invoke one model; a model that lies on disk rises first",
            "parameters": [_NAME, *_INVOKE_HEADERS],
            "requestBody": _ANY_BODY,
            "responses": {"200": _ANY_BODY, **_INVOKE_FAILURES},
        }
    },
    "/": {
        "get": {"operationId": "home", "summary": "What is loaded", "responses": {"200": _text("a page", "text/html")}}
    },
    "/docs": {
        "get": {"operationId": "docs", "summary": "This, to read", "responses": {"200": _text("a page", "text/html")}}
    },
    "/metrics": {
        "get": {
            "operationId": "metrics",
            "summary": "Figures for Prometheus",
            "responses": {"200": _text("the text format", "text/plain")},
        }
    },
    "/openapi.json": {
        "get": {
            "operationId": "openapi",
            "summary": "This document",
            "responses": {"200": {"description": "OpenAPI 3.1", "content": {"application/json": {"schema": {}}}}},
        }
    },
}


def document(version: str) -> Document:
    """Return the OpenAPI 3.1 document of a server of this ``version``."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "berth", "version": version, "description": "Models of many kinds behind one endpoint."},
        "paths": PATHS,
        "components": {"schemas": {"Error": _ERROR, "Model": _MODEL}},
    }
