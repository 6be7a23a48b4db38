"""Which paths and methods there are, as data, and which one a request means. Pure.

``openapi.py`` describes exactly these, ``asgi.py`` has one function for each name, and a test compares the three.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from container.errors import BadMethod, BadName, NoRoute

INVOKE = "invoke_model"
INVOCATIONS = "invocations"
PING = "ping"
LIST = "list_models"
LOAD = "load_model"
DESCRIBE = "describe_model"
UNLOAD = "unload_model"
PAGE = "page"
V2_SERVER = "v2_server"
V2_LIVE = "v2_live"
V2_READY = "v2_ready"
V2_MODEL = "v2_model"
V2_MODEL_READY = "v2_model_ready"
V2_INFER = "v2_infer"
V2_VERSION = "v2_version"
V2_VERSION_READY = "v2_version_ready"
V2_VERSION_INFER = "v2_version_infer"
V2_INDEX = "v2_index"
V2_LOAD = "v2_load"
V2_UNLOAD = "v2_unload"

#: Path -> method -> name of what it does. HEAD is answered wherever GET is.
ROUTES: dict[str, dict[str, str]] = {
    "/ping": {"GET": PING},
    "/invocations": {"POST": INVOCATIONS},
    "/models": {"GET": LIST, "POST": LOAD},
    "/models/{model_name}": {"GET": DESCRIBE, "DELETE": UNLOAD},
    "/models/{model_name}/invoke": {"POST": INVOKE},
    "/v2": {"GET": V2_SERVER},
    "/v2/health/live": {"GET": V2_LIVE},
    "/v2/health/ready": {"GET": V2_READY},
    "/v2/models/{model_name}": {"GET": V2_MODEL},
    "/v2/models/{model_name}/ready": {"GET": V2_MODEL_READY},
    "/v2/models/{model_name}/infer": {"POST": V2_INFER},
    "/v2/models/{model_name}/versions/{version}": {"GET": V2_VERSION},
    "/v2/models/{model_name}/versions/{version}/ready": {"GET": V2_VERSION_READY},
    "/v2/models/{model_name}/versions/{version}/infer": {"POST": V2_VERSION_INFER},
    "/v2/repository/index": {"POST": V2_INDEX},
    "/v2/repository/models/{model_name}/load": {"POST": V2_LOAD},
    "/v2/repository/models/{model_name}/unload": {"POST": V2_UNLOAD},
    "/": {"GET": PAGE},
    "/docs": {"GET": PAGE},
    "/metrics": {"GET": PAGE},
    "/openapi.json": {"GET": PAGE},
}

_FIXED = {path.encode(): methods for path, methods in ROUTES.items() if "{" not in path}
_MODEL = ROUTES["/models/{model_name}"]
_MODEL_INVOKE = ROUTES["/models/{model_name}/invoke"]
#: /v2, what there is before the name, the name, the version, what there is behind.
_V2 = re.compile(rb"(/v2(?:/repository)?/models/)([^/]+)(?:(/versions/)([^/]+))?(/[a-z]+)?")
_name_ok = re.compile(r"[A-Za-z0-9._-]{1,256}").fullmatch
_absolute = re.compile(rb"https?://[^/]*", re.IGNORECASE)


def match(raw_path: bytes, method: str) -> tuple[str, str]:
    """Return (operation, model name or "") for the path as it came, still percent-encoded.

    A name is percent-decoded once, after the path was cut at its slashes. Raises NoRoute, BadMethod (its message
    ends with the allowed methods; see ``allowed``) and BadName.
    """
    if raw_path.startswith(b"/models/"):
        raw_name = raw_path[8:]
        if raw_name.endswith(b"/invoke"):
            raw_name, methods = raw_name[:-7], _MODEL_INVOKE
        else:
            methods = _MODEL
        if b"/" in raw_name or not raw_name:
            raise _no_route(raw_path)
        operation = methods.get(method) or _operation(methods, method)
        return operation, _name(raw_name)
    fixed = _FIXED.get(raw_path)
    if fixed is None:
        if (named := _V2.fullmatch(raw_path)) is not None and (there := _v2_methods(named)) is not None:
            return there.get(method) or _operation(there, method), _name(named[2])
        if (prefix := _absolute.match(raw_path)) is not None:  # RFC 9112 section 3.2.2: the absolute form
            return match(raw_path[prefix.end() :] or b"/", method)
        raise _no_route(raw_path)
    return fixed.get(method) or _operation(fixed, method), ""


def allowed(raw_path: bytes) -> str:
    """Return the Allow header of a path for which ``match`` raised BadMethod."""
    path = raw_path[prefix.end() :] if (prefix := _absolute.match(raw_path)) is not None else raw_path
    methods = _FIXED.get(path or b"/")
    if methods is None and (found := _V2.fullmatch(path)) is not None:
        methods = _v2_methods(found)
    if methods is None:
        methods = _MODEL_INVOKE if path.endswith(b"/invoke") else _MODEL
    return ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])


def version_of(raw_path: bytes) -> str:
    """Return the version in a path of /v2 that ``match`` knows, "" if it has none."""
    found = _V2.search(raw_path)
    return found[4].decode("utf-8", "backslashreplace") if found is not None and found[4] is not None else ""


def is_v2(raw_path: bytes) -> bool:
    """Say whether the path belongs to the KServe v2 protocol, whose errors have a form of their own."""
    path = raw_path[prefix.end() :] if (prefix := _absolute.match(raw_path)) is not None else raw_path
    return path == b"/v2" or path.startswith(b"/v2/")


def _v2_methods(found: re.Match[bytes]) -> dict[str, str] | None:
    """The methods of a path of /v2 that names a model; None if there is no such path."""
    before, _, versions, _, behind = found.groups()
    template = before + b"{model_name}" + (versions + b"{version}" if versions else b"") + (behind or b"")
    return ROUTES.get(template.decode())


def _operation(methods: dict[str, str], method: str) -> str:
    if method == "HEAD" and "GET" in methods:
        return methods["GET"]
    raise BadMethod(f"{method} is not a method of this path; it takes {', '.join(methods)}")


def check_name(name: str) -> str:
    """Return ``name`` as it is. Raises BadName."""
    if _name_ok(name) is None:
        shown = ascii(name if len(name) <= 80 else name[:77] + "...")
        raise BadName(f"{shown} cannot be a model's name: 1 to 256 letters, digits, '.', '_' and '-'")
    return name


def _name(raw: bytes) -> str:
    return check_name((unquote_to_bytes(raw) if b"%" in raw else raw).decode("utf-8", "backslashreplace"))


def _no_route(raw_path: bytes) -> NoRoute:
    shown = raw_path[:80].decode("ascii", "backslashreplace")
    return NoRoute(f"no such path: {shown}; /openapi.json lists those there are")
