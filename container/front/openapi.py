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
        "cacheBytes": {"type": "integer", "description": "what its running generations take on the device beside them"},
        "tokenizerBytes": {
            "type": "integer",
            "description": "of its tokenizer; part of bytes without a GPU",
        },
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

_V2_ERROR: Document = {
    "type": "object",
    "properties": {"error": _STRING, "reason": _ERROR["properties"]["reason"]},
    "required": ["error", "reason"],
}
_VERSION: Document = {
    "name": "version",
    "in": "path",
    "required": True,
    "description": "the version that is served: the highest there is",
    "schema": {"type": "string"},
}
_PORTS: Document = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": _STRING,
            "datatype": _STRING,
            "shape": {"type": "array", "items": _NUMBER, "description": "-1: any size"},
        },
        "required": ["name", "datatype", "shape"],
    },
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


def _v2_failures(*statuses: int) -> Document:
    """Return the responses for error statuses on /v2, which have a body of their own."""
    found = _failures(*statuses)
    for response in found.values():
        response["content"] = {"application/json": {"schema": _ref("V2Error")}}
    return found


def _v2_get(operation: str, summary: str, good: Document, parameters: list[Document], *statuses: int) -> Document:
    found = {"operationId": operation, "summary": summary, "responses": {"200": good, **_v2_failures(*statuses)}}
    return {"get": {**found, "parameters": parameters} if parameters else found}


def _v2_post(operation: str, summary: str, good: Document, parameters: list[Document], *statuses: int) -> Document:
    return {"post": _v2_get(operation, summary, good, parameters, *statuses)["get"]}


def _v2_model(suffix: str, parameters: list[Document]) -> Document:
    """The paths of one model, with or without a version. suffix: what the operations' names have more."""
    at = "/v2/models/{model_name}" + ("/versions/{version}" if suffix else "")
    word = "version" if suffix else "model"
    tensors = {"name": _STRING, "platform": _STRING, "versions": {"type": "array", "items": _STRING}}
    infer = _v2_post(
        f"v2_{suffix or ''}infer", "Inference with tensors, JSON or binary", _ANY_BODY, [*parameters, *_V2_HEADERS]
    )
    infer["post"]["requestBody"] = _ANY_BODY
    infer["post"]["responses"] |= _v2_failures(400, 404, 413, 415, 500, 503, 504, 507)
    return {
        at: _v2_get(
            f"v2_{word}",
            "The tensors that it takes and gives, where they are declared",
            _object("metadata", {**tensors, "inputs": _PORTS, "outputs": _PORTS}),
            parameters,
            *(400, 404, 503),
        ),
        f"{at}/ready": _v2_get(
            f"v2_{word}_ready", "May it be called?", _object("it may", {"ready": _TRUE}), parameters, 400, 404, 503
        ),
        f"{at}/infer": infer,
    }


_TRUE: Document = {"type": "boolean"}
_EMPTY: Document = {"description": "done; no body"}
_V2_HEADERS = [
    _header("Inference-Header-Content-Length", "bytes of JSON before the binary tensors; 0: the body is one raw input"),
    _header("X-Amzn-SageMaker-Inference-Id", "id of the request; echoed, and written into log lines"),
]
_V2_LOAD: Document = {
    "description": "where the model is; without a url it is looked for by its name",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"parameters": {"type": "object", "properties": {"url": _STRING}}},
            }
        }
    },
}
PATHS |= {
    "/v2": _v2_get(
        "v2_server",
        "What this server is",
        _object("metadata", {"name": _STRING, "version": _STRING, "extensions": {"type": "array", "items": _STRING}}),
        [],
    ),
    "/v2/health/live": _v2_get("v2_live", "Does it run?", _object("it does", {"live": _TRUE}), [], 503),
    "/v2/health/ready": _v2_get("v2_ready", "May it be called?", _object("it may", {"ready": _TRUE}), [], 503),
    **_v2_model("", [_NAME]),
    **_v2_model("version_", [_NAME, _VERSION]),
    "/v2/repository/index": _v2_post(
        "v2_index",
        "The ready models",
        {
            "description": "all of them",
            "content": {
                "application/json": {
                    "schema": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {"name": _STRING, "state": _STRING, "reason": _STRING},
                            "required": ["name", "state", "reason"],
                        },
                    }
                }
            },
        },
        [],
        503,
    ),
    "/v2/repository/models/{model_name}/load": _v2_post(
        "v2_load", "Load a model; one that is loaded stays", _EMPTY, [_NAME], 400, 404, 413, 500, 503, 507
    ),
    "/v2/repository/models/{model_name}/unload": _v2_post(
        "v2_unload", "Unload a model", _EMPTY, [_NAME], 400, 404, 503
    ),
}
PATHS["/v2/repository/models/{model_name}/load"]["post"]["requestBody"] = _V2_LOAD


def document(version: str) -> Document:
    """Return the OpenAPI 3.1 document of a server of this ``version``."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "berth", "version": version, "description": "Models of many kinds behind one endpoint."},
        "paths": PATHS,
        "components": {"schemas": {"Error": _ERROR, "Model": _MODEL, "V2Error": _V2_ERROR}},
    }
