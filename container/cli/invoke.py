"""Call a model behind a SageMaker endpoint, or behind the stand-in of local_test; the answer goes to stdout.

Examples:
  berth invoke cats photo.jpg --target cats.tar.gz
  echo '{"inputs": "a cat"}' | berth invoke cats - --target sentences.tar.gz
  berth invoke local payload.json --target a.tar.gz --url http://127.0.0.1:8090

Exit status: 0 answered, 1 refused or failed, with the model's own words on stderr.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from container.cli import aws
from container.log import visible

#: By a file's ending; anything else is JSON from stdin, bytes from a file.
TYPES = {
    ".json": "application/json",
    ".csv": "text/csv",
    ".txt": "text/plain",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".npy": "application/x-npy",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``berth invoke``."""
    add = parser.add_argument
    add("name", metavar="ENDPOINT", help="name of the endpoint")
    add("payload", metavar="FILE", help='the request\'s body; "-" reads it from stdin')
    add("--target", metavar="KEY", help="TargetModel: the archive's name under the prefix")
    add("--content-type", metavar="TYPE", help="(default: by the file's ending, JSON from stdin)")
    add("--accept", metavar="TYPE", help="type of the answer")
    add("--url", help="address of a stand-in instead of AWS")
    add("--region", help="AWS region (default: the AWS configuration)")
    add("--profile", help="AWS profile")


def run(options: argparse.Namespace) -> int:
    """Invoke; return the exit status."""
    try:
        body = sys.stdin.buffer.read() if options.payload == "-" else Path(options.payload).read_bytes()
    except OSError as error:
        print(f"berth invoke: {options.payload}: {error.strerror}", file=sys.stderr)
        return 1
    try:
        answer = _client(options).invoke_endpoint(Body=body, **arguments(options))
        content = answer["Body"].read()
    except aws.Trouble as error:
        print(f"berth invoke: {error}", file=sys.stderr)
        return 1
    except aws.errors() as error:
        print(f"berth invoke: {explain(error)}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(content)
    sys.stdout.flush()
    return 0


def arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return InvokeEndpoint's arguments but the body."""
    ending = ".json" if options.payload == "-" else Path(options.payload).suffix.lower()
    given = {
        "EndpointName": options.name,
        "ContentType": options.content_type or TYPES.get(ending, "application/octet-stream"),
        "TargetModel": options.target,
        "Accept": options.accept,
    }
    return {name: value for name, value in given.items() if value is not None}


def explain(error: BaseException) -> str:
    """Return the model's own words where it has answered with an error, else AWS's."""
    response = getattr(error, "response", None) or {}
    if aws.code(error) == "ModelError":
        return (
            f"the model answered {response.get('OriginalStatusCode')}: {visible(str(response.get('OriginalMessage')))}"
        )
    return aws.explain(error)


def _client(options: argparse.Namespace) -> Any:
    if not options.url:
        return aws.session(options.region, options.profile).client("sagemaker-runtime")
    try:
        import boto3
    except ModuleNotFoundError:
        raise aws.Trouble("boto3 is missing: pip install 'berth[aws]'") from None
    # The stand-in checks no signature, but botocore makes one from something.
    whoever = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
    return boto3.client("sagemaker-runtime", endpoint_url=options.url, region_name="us-east-1", **whoever)
