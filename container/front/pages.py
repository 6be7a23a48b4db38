"""What people look at, as a Flask app behind a thread pool: /, /docs, /metrics, /openapi.json.

A page asks the engine by handing a coroutine to the front's event loop and waiting for it on its own thread.
"""

from __future__ import annotations

import asyncio
from importlib import metadata
from typing import Any, Protocol

from a2wsgi import WSGIMiddleware
from flask import Flask, Response, jsonify, render_template_string

from container.errors import Restarting, ServingError
from container.front import metrics_text, openapi
from container.front.counts import Requests
from container.wire import messages as m

_WAIT_S = 2.0
_THREADS = 4
_SHOWN_MODELS = 100

_STYLE = """<style>body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em}
table{border-collapse:collapse}td,th{text-align:left;padding:.2em 1em .2em 0;border-bottom:1px solid #ddd}
td.n{text-align:right}code{background:#f3f3f3}</style>"""

_HOME = (
    "<!doctype html><title>berth</title>"
    + _STYLE
    + """<h1>berth</h1><p>{{ state }}. <a href="docs">Routes</a>, <a href="openapi.json">OpenAPI</a>,
<a href="metrics">metrics</a>.</p>{% if models %}<table><tr><th>model<th>tier<th>state<th>bytes<th>task<th>url</tr>
{% for each in models %}<tr><td>{{ each.name }}<td>{{ each.tier }}<td>{{ each.state }}<td class="n">
{{ "{:,}".format(each.bytes) }}<td>{{ each.task }}<td><code>{{ each.url }}</code></tr>{% endfor %}</table>
{% if more %}<p>The first {{ models|length }} of more.</p>{% endif %}
{% else %}<p>No model is loaded.</p>{% endif %}"""
)

_DOCS = (
    "<!doctype html><title>berth: routes</title>"
    + _STYLE
    + """<h1>Routes</h1><table>{% for path, methods in paths.items() %}{% for method, each in methods.items() %}
<tr><td><code>{{ method.upper() }} {{ path }}</code><td>{{ each.summary }}<td>{{ each.responses|join(" ") }}</tr>
{% endfor %}{% endfor %}</table><p>In full: <a href="openapi.json">openapi.json</a>.</p>"""
)


class Engine(Protocol):
    """What the pages need of ``wire.client.Client``."""

    connected: bool

    async def call(self, request: m.Request) -> m.Reply:
        """Return the reply to ``request``. Raises ServingError."""

    def counts(self, counts: m.Counts) -> None:
        """Send what this front counted."""


class Pages:
    """What the pages show, got from the engine through the front's event loop."""

    def __init__(self, engine: Engine, requests: Requests, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._requests = requests
        self._loop = loop

    def home(self) -> str:
        """Return the page of loaded models."""
        try:
            status, page, models = self._wait(self._loaded())
        except ServingError as error:
            return render_template_string(_HOME, state=f"The engine does not answer: {error.message}", models=[])
        state = f"Engine {status.state} on {status.device}"
        return render_template_string(_HOME, state=state, models=models, more=page.next_token)

    def docs(self) -> str:
        """Return the routes, to read."""
        return render_template_string(_DOCS, paths=openapi.PATHS)

    def metrics(self) -> Response:
        """Return the engine's figures; while there is no engine, what this front has counted."""
        figures: list[metrics_text.Figure] = [("berth_engine_up", {}, float(self._engine.connected))]
        try:
            reply = self._wait(self._stats())
            figures += reply.values if isinstance(reply, m.Figures) else []
        except ServingError:
            pass  # berth_engine_up says it
        if not any(name == metrics_text.REQUESTS for name, _, _ in figures):
            figures += metrics_text.request_figures(self._requests.totals())
        return Response(metrics_text.exposition(figures), content_type=metrics_text.CONTENT_TYPE)

    def document(self) -> Response:
        """Return the OpenAPI document."""
        return jsonify(openapi.document(metadata.version("berth")))

    async def _stats(self) -> m.Reply:
        """Send what was counted up to now, so that the engine's sums hold it, and ask for the figures."""
        if self._engine.connected and (counts := self._requests.take()) is not None:
            self._engine.counts(counts)
        return await self._engine.call(m.Stats(0))

    async def _loaded(self) -> tuple[Any, Any, list[m.Description]]:
        """Return the engine's Status, the first Page of models, and what is known of each that is still there."""
        status = await self._engine.call(m.Ready(0))
        page: Any = await self._engine.call(m.List(0, _SHOWN_MODELS))
        asked = [self._engine.call(m.Describe(0, entry.name)) for entry in page.models]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        return status, page, [reply for reply in replies if isinstance(reply, m.Description)]

    def _wait(self, work: Any) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(_WAIT_S)
        except TimeoutError:
            future.cancel()
            raise Restarting(f"no answer within {_WAIT_S:.0f} s") from None


def flask_app(pages: Pages) -> Flask:
    """Return the Flask app with a route for each page."""
    app = Flask("berth", static_folder=None)
    app.add_url_rule("/", view_func=pages.home)
    app.add_url_rule("/docs", view_func=pages.docs)
    app.add_url_rule("/metrics", view_func=pages.metrics)
    app.add_url_rule("/openapi.json", view_func=pages.document, endpoint="openapi")
    return app


def asgi_app(engine: Engine, requests: Requests, loop: asyncio.AbstractEventLoop) -> WSGIMiddleware:
    """Return the pages as an ASGI app."""
    wsgi: Any = flask_app(Pages(engine, requests, loop))
    return WSGIMiddleware(wsgi, workers=_THREADS)
