"""The platform in front of a real server: a folder that plays S3, an unmodified boto3 client, archives from tar."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from local_test import aws
from local_test.bucket import Bucket
from local_test.container_http import Container, Limits
from local_test.endpoint import serve
from local_test.hosting import Endpoint
from tests.server import Server, running


class Platform:
    """An endpoint called "local" in front of ``server``; ``prefix`` is the folder that plays the S3 prefix."""

    def __init__(self, server: Server, prefix: Path | None) -> None:
        self.server = server
        self.prefix = prefix
        bucket = Bucket(prefix, server.base) if prefix is not None else None
        container = Container(f"http://127.0.0.1:{server.port}", 2.0)
        self.endpoint = Endpoint(aws.Place("local"), bucket, [container], Limits(connect_s=2.0))
        for each in self.endpoint.health:
            assert each.wait_in_service()
        self._http = serve(self.endpoint, "127.0.0.1", 0)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.client = boto3.client(
            "sagemaker-runtime",
            endpoint_url=f"http://127.0.0.1:{self._http.port}",
            region_name="us-east-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
            config=Config(retries={"total_max_attempts": 1}, read_timeout=70),
        )

    def invoke(self, target: str | None, body: bytes, content_type: str, **more: str) -> dict[str, Any]:
        """``invoke_endpoint`` with the body read."""
        if target is not None:
            more["TargetModel"] = target
        answer = self.client.invoke_endpoint(EndpointName="local", ContentType=content_type, Body=body, **more)
        return {**answer, "Body": answer["Body"].read()}

    def ask(self, target: str | None, body: bytes, content_type: str = "application/json", **more: str) -> Any:
        """The JSON in the answer."""
        return json.loads(self.invoke(target, body, content_type, **more)["Body"])

    def close(self) -> None:
        self.client.close()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self.endpoint.close()


@contextmanager
def multi_model(tmp: Path, **environ: str) -> Iterator[Platform]:
    """A multi-model endpoint over an empty prefix, with nothing loaded."""
    prefix = tmp / "prefix"
    prefix.mkdir(parents=True)
    with running(tmp / "ml", **environ) as server:
        platform = Platform(server, prefix)
        try:
            yield platform
        finally:
            platform.close()


@contextmanager
def single_model(base: Path, **environ: str) -> Iterator[Platform]:
    """A single-model endpoint over what lies in ``base``/model."""
    with running(base, SAGEMAKER_MULTI_MODEL="", **environ) as server:
        platform = Platform(server, None)
        try:
            yield platform
        finally:
            platform.close()


def tar(folder: Path, archive: Path) -> Path:
    """``tar -czf archive -C folder .``: members begin with ``./``."""
    subprocess.run(["tar", "-czf", str(archive), "-C", str(folder), "."], check=True)
    return archive
