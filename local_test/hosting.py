"""An endpoint: its name, its prefix of archives, the containers behind it, and which of them gets a call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence

from local_test import aws, event_stream
from local_test.bucket import Artifact, Bucket
from local_test.container_http import Answer, Call, Container, Limits, NoAnswer
from local_test.health import Health
from local_test.instance import Instance
from local_test.routing import Burden, choose

log = logging.getLogger(__name__)


class Endpoint:
    """One endpoint in service. ``bucket`` None: a single-model endpoint."""

    def __init__(
        self, place: aws.Place, bucket: Bucket | None, containers: Sequence[Container], limits: Limits
    ) -> None:
        self.place = place
        self.limits = limits
        self._bucket = bucket
        self.health = [Health(Instance(each, bucket, place, limits), limits) for each in containers]
        self._versions: dict[str, str] = {}  # key -> the name it had when last called
        self._lock = threading.Lock()

    def invoke(self, call: Call) -> Answer:
        """Return the model's good answer. Raises Refused for everything else."""
        aws.check_lengths(call.headers)
        target = call.headers.get("X-Amzn-SageMaker-Target-Model")
        if self._bucket is None:
            if target is not None:
                raise aws.target_model_not_supported(self.place)
            answer = self._invoke_single(call)
        else:
            if not target:
                raise aws.target_model_missing(call.request_id)
            model = self._bucket.artifact(target)
            self._retire_older(model)
            answer = self._route(model.name).invoke(model, call)
        if answer.status >= 400:
            raise aws.model_error(self.place, answer.status, answer.body)
        return answer

    def stream(self, call: Call) -> tuple[Mapping[str, str], Iterator[bytes]]:
        """Return the answer's headers and its event-stream frames. Raises Refused for what fails before the first.

        The runtime API has no TargetModel for streams, so only single-model endpoints can be streamed from.
        """
        aws.check_lengths(call.headers)
        if self._bucket is not None:
            raise aws.target_model_missing(call.request_id)
        container = self._route(None).container
        try:
            answer, pieces = container.stream(None, call, self.limits.stream_s)
            if answer.status >= 400:
                raise aws.model_error(self.place, answer.status, b"".join(pieces))
        except NoAnswer as error:
            raise aws.no_answer(self.place, str(error)) from error
        return answer.headers, _frames(pieces)

    def status(self) -> dict[str, object]:
        """Return what a person wants to know of the stand-in, as JSON values."""
        keys = self._bucket.keys() if self._bucket else []
        known = {self._bucket.artifact(key).name: key for key in keys} if self._bucket else {}
        return {
            "endpoint": self.place.endpoint,
            "archives": {key: name for name, key in known.items()},
            "containers": [
                {
                    "url": each.instance.container.url,
                    "state": each.state,
                    "reason": each.reason,
                    "pingP99Ms": each.ping_p99_ms(),
                    "loaded": [known.get(name, name) for name in each.instance.names()],
                    "inFlight": each.instance.in_flight(),
                    "memoryBytes": _memory(each.instance.container, self.limits.ping_s),
                }
                for each in self.health
            ],
        }

    def close(self) -> None:
        """Stop asking the containers and close the connections to them; they keep their models."""
        for each in self.health:
            each.stop()
            each.instance.container.close()

    def _invoke_single(self, call: Call) -> Answer:
        try:
            return self._route(None).container.invoke(None, call, self.limits.invoke_s)
        except NoAnswer as error:
            raise aws.no_answer(self.place, str(error)) from error

    def _route(self, name: str | None) -> Instance:
        healthy = [each.instance for each in self.health if each.state == "healthy"]
        if not healthy:
            raise aws.not_in_service("; ".join(f"{h.instance.container.url}: {h.reason}" for h in self.health))
        chosen = healthy[choose([_burden(each, name) for each in healthy])]
        if name is not None and len(healthy) > 1:
            self._tell_of_copies(name, chosen, healthy)
        return chosen

    def _tell_of_copies(self, name: str, chosen: Instance, healthy: Sequence[Instance]) -> None:
        if not _burden(chosen, name).has_model and any(_burden(each, name).has_model for each in healthy):
            log.info("%s is hot; %s gets it too", name, chosen.container.url)

    def _retire_older(self, model: Artifact) -> None:
        with self._lock:
            older = self._versions.get(model.key)
            self._versions[model.key] = model.name
        if older is not None and older != model.name:
            for each in self.health:
                each.instance.retire(older)


def _burden(instance: Instance, name: str | None) -> Burden:
    names, calls = instance.names(), instance.calls(name)
    return Burden(name in names or calls > 0, calls, instance.in_flight(), len(names))


def _memory(container: Container, within_s: float) -> dict[str, int]:
    try:
        return container.memory(within_s)
    except NoAnswer:
        return {}


def _frames(pieces: Iterator[bytes]) -> Iterator[bytes]:
    try:
        for piece in pieces:
            yield event_stream.payload_part(piece)
    except NoAnswer as error:
        late = str(error) == aws.TIMED_OUT
        yield event_stream.stream_error("ModelInvocationTimeExceeded" if late else "StreamBroken", str(error))
