"""The ``context`` of multi-model-server's and TorchServe's handlers, and the metrics in it.

One object serves a model for its life; what belongs to a batch is put into it before each call (``begin``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from container import log
from container.payload import Payload

_log = log.get(__name__)
#: Metrics of one model that are kept; code that makes a new name for each request must not fill the memory.
_MAX_METRICS = 1000


class Headers(dict[str, str]):
    """Request headers under the names that clients write, found in any case."""

    @staticmethod
    def of(payload: Payload) -> Headers:
        """Return the headers of a request as far as they reach a model."""
        fields = {
            "content-type": payload.content_type,
            "accept": payload.accept,
            "x-amzn-sagemaker-inference-id": payload.request_id,
            "x-amzn-sagemaker-custom-attributes": payload.attributes,
            **payload.headers,
        }
        return Headers({_written(name): value for name, value in fields.items() if value})

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of ``key``, written in whatever case."""
        return super().get(_written(key), super().get(key, default))

    def __getitem__(self, key: str) -> str:
        return super().__getitem__(_written(key) if _written(key) in self.keys() else key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and (super().__contains__(key) or super().__contains__(_written(key)))


def _written(name: str) -> str:
    """Return a header's name as clients write it: Content-Type, X-Amzn-SageMaker-Target-Model."""
    text = "-".join(part.capitalize() for part in name.split("-"))
    return text.replace("Sagemaker", "SageMaker")


class Metrics:
    """The metrics store: values are added up or replaced, the last ones logged when they change hands at debug level.

    What handlers call of it: add_counter, add_time, add_size, add_percent, add_error, add_metric, and TorchServe's
    add_metric_to_cache and get_metric.
    """

    def __init__(self) -> None:
        #: (name, unit) -> value
        self.values: dict[tuple[str, str], Any] = {}

    def add_counter(self, name: str, value: float, idx: int | None = None, dimensions: Any = None) -> None:
        """Add ``value`` to a counter."""
        self._put(name, "count", self.values.get((name, "count"), 0) + value)

    def add_time(
        self, name: str, value: float, idx: int | None = None, unit: str = "ms", dimensions: Any = None
    ) -> None:
        """Keep a time in ``unit``, ms or s."""
        self._put(name, unit, value)

    def add_size(
        self, name: str, value: float, idx: int | None = None, unit: str = "MB", dimensions: Any = None
    ) -> None:
        """Keep a size in ``unit``: B, kB, MB or GB."""
        self._put(name, unit, value)

    def add_percent(self, name: str, value: float, idx: int | None = None, dimensions: Any = None) -> None:
        """Keep a percentage."""
        self._put(name, "percent", value)

    def add_error(self, name: str, value: Any, dimensions: Any = None) -> None:
        """Keep an error's text."""
        self._put(name, "", value)

    def add_metric(
        self,
        name: str,
        value: Any = 0,
        idx: int | None = None,
        unit: str | None = None,
        dimensions: Any = None,
        **more: Any,
    ) -> Metric:
        """Keep any metric; TorchServe's form of the call returns the metric to be updated later."""
        self._put(name, unit or "", value)
        return Metric(self, name, unit or "")

    def add_metric_to_cache(self, name: str, unit: str = "", *more: Any, **named: Any) -> Metric:
        """Return a metric to be updated later."""
        return Metric(self, name, unit)

    def get_metric(self, name: str, *more: Any, **named: Any) -> Metric:
        """Return the metric of this name, to be updated."""
        unit = next((unit for known, unit in self.values if known == name), "")
        return Metric(self, name, unit)

    def _put(self, name: str, unit: str, value: Any) -> None:
        if (name, unit) in self.values or len(self.values) < _MAX_METRICS:
            self.values[name, unit] = value
        _log.debug("metric %s: %s %s", name, value, unit)


class Metric:
    """One metric by its name, as TorchServe's handlers hold it."""

    def __init__(self, store: Metrics, name: str, unit: str) -> None:
        self._store = store
        self.name = name
        self.unit = unit

    def add_or_update(self, value: Any, *dimensions: Any, **more: Any) -> None:
        """Keep ``value``."""
        self._store._put(self.name, self.unit, value)

    update = add_or_update


class _Response:
    """What a handler sets for one answer."""

    def __init__(self) -> None:
        self.status = 200
        self.phrase = ""
        self.headers: dict[str, str] = {}


class Context:
    """What ``handle`` and ``initialize`` are given. ``idx`` is a request's place in the batch.

    system_properties: model_dir, gpu_id (None without a GPU), batch_size, server_name, server_version.
    manifest: MANIFEST.json; model_yaml_config: model-config.yaml; {} where there is none.
    """

    def __init__(
        self,
        model_name: str,
        properties: Mapping[str, Any],
        manifest: dict[str, Any],
        config: dict[str, Any],
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self.model_yaml_config = config
        self.metrics = Metrics()
        self.system_properties = dict(properties)
        self.request_ids: dict[int, str] = {}
        self._requests: list[Headers] = []
        self._responses: list[_Response] = []

    def begin(self, payloads: Sequence[Payload]) -> None:
        """Put the requests of a batch in."""
        self.request_ids = {index: payload.request_id for index, payload in enumerate(payloads)}
        self._requests = [Headers.of(payload) for payload in payloads]
        self._responses = [_Response() for _ in payloads]

    def get_request_id(self, idx: int = 0) -> str | None:
        """Return the id of a request, None while loading."""
        return self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> str | None:
        """Return a header of a request, None if it has none of this name."""
        value: str | None = self._requests[idx].get(key)
        return value

    def get_all_request_header(self, idx: int) -> Headers:
        """Return the headers of a request."""
        return self._requests[idx]

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Set the Content-Type of an answer."""
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> str | None:
        """Return the Content-Type that was set for an answer."""
        return self.get_response_headers(idx).get("content-type")

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Set a header of an answer."""
        self._responses[idx].headers[key.lower()] = value

    def get_response_headers(self, idx: int) -> dict[str, str]:
        """Return the headers that were set for an answer, by lower-case name."""
        return self._responses[idx].headers

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Set the status of an answer; while loading there is none to set."""
        if idx < len(self._responses):
            self._responses[idx].status, self._responses[idx].phrase = code, phrase

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        """Set the status of every answer of the batch."""
        for idx in range(len(self._responses)):
            self.set_response_status(code, phrase, idx)

    def get_response_status(self, idx: int) -> tuple[int, str]:
        """Return status and phrase of an answer."""
        return self._responses[idx].status, self._responses[idx].phrase
