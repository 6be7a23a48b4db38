"""What Java's front answers otherwise than ours, as data: the contract suite looks here, the docs list the same.

A row: what a caller sees at the http door, at the mms door, and the words under which
docs/moving-in/multi-model-server.md tells it. Whatever has no row is the same at both doors.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Difference(NamedTuple):
    http: Any
    mms: Any
    told: str


DIFFERENCES = {
    "broken archive": Difference(400, 500, "A load that fails"),
    "code raises at load": Difference(500, 500, "A load that fails"),
    "path outside": Difference(400, 500, "A load that fails"),
    "bad name": Difference(400, 500, "A load that fails"),
    "larger than the limit": Difference(400, 507, "Larger than the memory limit"),
    "load request not JSON": Difference(400, 500, "`POST /models` with a body that is not JSON"),
    "reason of Java's own errors": Difference(True, False, "`reason`"),
    "describe": Difference({"state", "tier", "bytes"}, {"workers", "batchSize", "runtime"}, "`GET /models/{name}`"),
    "freedBytes": Difference(True, False, "`freedBytes`"),
    "listed while loading": Difference(False, True, "`GET /models` lists"),
    "second load meanwhile": Difference("waits", "at once", "A second `POST /models`"),
    # None: Java sometimes puts the request back into the queue of the model that it has just removed.
    "unload in flight": Difference({200}, {500, None}, "`DELETE` with requests in flight"),
    "bad page token": Difference(400, 200, "Paging"),
    "token after the last page": Difference(False, True, "Paging"),
    "body over the limit says why": Difference(True, False, "A body over the limit"),
    "several at once": Difference(True, False, "One request at a time"),
    "pages": Difference(200, 404, "`/metrics`"),
}
