"""SageMaker's side of the verbs: look what is there, carry calls out, wait, and find the reason of a failure."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from container.cli import aws, deployment
from container.cli.deployment import Call, Found, Wish

#: Log lines of a failed endpoint that are shown.
_LINES = 20


def describe(client: Any, operation: str, **names: str) -> Mapping[str, Any] | None:
    """Return what ``client.operation(**names)`` describes, None when AWS has nothing of that name."""
    try:
        answer: Mapping[str, Any] = getattr(client, operation)(**names)
    except client.exceptions.ClientError as error:
        if is_absent(error):
            return None
        raise
    return answer


def is_absent(error: BaseException) -> bool:
    """True when an error says that nothing has that name; SageMaker says so with a validation error."""
    absent = "could not find" in str(error).lower()
    return aws.code(error) == "ObjectNotFoundException" or (aws.code(error) == "ValidationException" and absent)


def look(client: Any, wish: Wish) -> Found:
    """Return what is there under the names of a wish."""
    model, config = deployment.model(wish)["ModelName"], deployment.config(wish)["EndpointConfigName"]
    return Found(
        describe(client, "describe_model", ModelName=model) is not None,
        describe(client, "describe_endpoint_config", EndpointConfigName=config) is not None,
        describe(client, "describe_endpoint", EndpointName=wish.name),
    )


def carry_out(session: Any, calls: list[Call], *, dry_run: bool) -> None:
    """Make the calls in order; with ``dry_run`` only print them."""
    for call in calls:
        print(str(call) if dry_run else f"  {call.operation}: {call.why}", file=sys.stdout if dry_run else sys.stderr)
        if not dry_run:
            getattr(session.client(call.service), call.operation)(**call.arguments)


def wait(
    client: Any, wish: Wish, limit_s: float, *, every_s: float = 10.0, sleep: Callable[[float], None] = time.sleep
) -> str | None:
    """Wait until the endpoint is in service as wished; return None then, else what went wrong, in a sentence."""
    wanted = deployment.config(wish)["EndpointConfigName"]
    waited_s, last = 0.0, ""
    while True:
        seen = client.describe_endpoint(EndpointName=wish.name)
        status = seen["EndpointStatus"]
        if sys.stderr.isatty():  # one line that is written over; a log gets a line a status
            sys.stderr.write(f"\r\x1b[2K  {waited_s:5.0f} s  {status}" + ("" if status.endswith("ing") else "\n"))
            sys.stderr.flush()
        elif status != last:
            print(f"  {waited_s:5.0f} s  {status}", file=sys.stderr)
        last = status
        if status == "InService":
            if seen["EndpointConfigName"] == wanted:
                return None
            return f"{wish.name} was rolled back: {seen.get('FailureReason', 'it runs the former configuration')}"
        if status in {"Failed", "OutOfService", "UpdateRollbackFailed"}:
            return f"{wish.name} is {status}: {seen.get('FailureReason', 'no reason given')}"
        if waited_s >= limit_s:
            return f"{wish.name} is still {status} after {waited_s:.0f} s; it goes on without us (berth endpoint list)"
        sleep(every_s)
        waited_s += every_s


def last_words(session: Any, endpoint: str) -> list[str]:
    """Return the newest log lines of an endpoint's containers, oldest first; [] when there is no log to be read."""
    logs = session.client("logs")
    group = f"/aws/sagemaker/Endpoints/{endpoint}"
    try:
        streams = logs.describe_log_streams(logGroupName=group, orderBy="LastEventTime", descending=True, limit=1)
        for stream in streams["logStreams"]:
            events = logs.get_log_events(
                logGroupName=group, logStreamName=stream["logStreamName"], limit=_LINES, startFromHead=False
            )
            return [str(event["message"]).rstrip() for event in events["events"]]
    except aws.errors():  # a failure that left no log, or a role that may not read it: the reason above must do
        return []
    return []
